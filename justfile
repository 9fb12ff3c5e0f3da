# What people do daily. `just` alone lists it.

_default:
    @just --list

# the library, the drop-in and the command, optimised
build:
    cargo build --release

# every test, on every file system this machine can mount
test:
    scripts/test

# every test once, in the default temporary directory
quick:
    scripts/test quick

# real programs with and without the drop-in: all, or those named (the last column tells what was declined, and why)
programs *NAMES:
    scripts/programs long {{NAMES}}

# format, lints and documentation, as .ci/run wants them
lint: doc
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# the libraries' documentation
doc:
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --lib --features elision/bytes,elision/stable_deref_trait

# the benches; arguments go to scripts/bench
bench *ARGS:
    scripts/bench {{ARGS}}

# one ordinary program on a file of 1 GiB, without and with the drop-in
demo: build
    ${CARGO_TARGET_DIR:-target}/release/elision demo

# everything that must hold before a change is taken, on a fresh clone of the last commit
ci:
    .ci/run
