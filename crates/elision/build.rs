//! Says once where Elision works: `cfg(supported)`. Elsewhere `src/portable.rs` stands in, with the same face.
//! `RUSTFLAGS="--cfg elision_portable"` builds that stand-in anywhere, which is how it is tested.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(supported)");
    println!("cargo::rustc-check-cfg=cfg(elision_portable)");
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let asked_not_to = std::env::var_os("CARGO_CFG_ELISION_PORTABLE").is_some();
    if var("CARGO_CFG_TARGET_OS") == "linux" && var("CARGO_CFG_TARGET_ARCH") == "x86_64" && !asked_not_to {
        println!("cargo::rustc-cfg=supported");
    }
}
