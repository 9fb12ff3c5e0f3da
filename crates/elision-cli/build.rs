//! Puts the drop-in into the command, where that is to be installed alone (`cargo install`): builds it with a cargo of its own, because no
//! cargo makes a library of another package a file that this one can include.
//!
//! Only with the feature `embed` (the default), and in release builds: those for tests and for development find the drop-in beside the
//! command, and would only be slower.

use std::env;
use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR"));
    let embeds = variable("CARGO_FEATURE_EMBED") == "1"
        && variable("PROFILE") == "release"
        && variable("CARGO_CFG_TARGET_OS") == "linux"
        && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    let text = match embeds.then(|| built(&out)) {
        None => "None".to_owned(),
        Some(Ok((library, name))) => {
            format!("Some(Embedded {{ name: {name:?}, bytes: include_bytes!({library:?}) }})")
        }
        Some(Err(error)) => panic!(
            "the drop-in could not be built: {error}\n\
             `--no-default-features` makes a command without it, which needs {NAME} beside it or in ../lib"
        ),
    };
    fs::write(out.join("embedded.rs"), text).expect("a writable OUT_DIR");
}

const NAME: &str = "libelision_preload.so";

/// The library, and a name for these bytes.
fn built(out: &Path) -> Result<(PathBuf, String), Box<dyn Error>> {
    // Said by the build script of elision-preload, wherever its sources are.
    let sources = PathBuf::from(variable("DEP_ELISION_PRELOAD_SOURCES"));
    for part in ["elision-preload", "elision-core", "elision-sys"] {
        let part = sources.with_file_name(part).join("src");
        if part.exists() {
            println!("cargo:rerun-if-changed={}", part.display());
        }
    }
    let directory = out.join("drop-in");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--lib", "--message-format=json-render-diagnostics"]);
    // Without them a small write takes 10 ns more (docs/BENCHES.md). A package from a registry has no profile.
    cargo.args(["--config", "profile.release.lto=\"fat\"", "--config", "profile.release.codegen-units=1"]);
    cargo.args(["--config", "profile.release.strip=true"]);
    cargo.arg("--manifest-path").arg(sources.join("Cargo.toml")).arg("--target-dir").arg(&directory);
    if variable("TARGET") != variable("HOST") {
        cargo.args(["--target", &variable("TARGET")]);
    }
    // A linter in the compiler's place is not for this.
    for name in
        ["RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"]
    {
        cargo.env_remove(name);
    }
    let output = cargo.output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(
            format!("{cargo:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    let library = printed
        .split('"')
        .find(|text| text.starts_with('/') && text.ends_with(NAME))
        .ok_or_else(|| format!("cargo names no {NAME}:\n{printed}"))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(library)?);
    Ok((library.into(), format!("{}-{:016x}", variable("CARGO_PKG_VERSION"), hasher.finish())))
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
