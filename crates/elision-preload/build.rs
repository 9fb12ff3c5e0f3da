//! Links the unwinder into the drop-in, which would else load libgcc_s.so with every program: a seventh of what a start costs. And tells
//! the command's build script, which builds the drop-in once more to put it into the command, where the sources are.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name| std::env::var(name).unwrap_or_default();
    println!("cargo:sources={}", variable("CARGO_MANIFEST_DIR"));
    if variable("TARGET") != variable("HOST") || variable("CARGO_CFG_TARGET_ENV") != "gnu" {
        return;
    }
    let Ok(output) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else { return };
    let answer = String::from_utf8_lossy(&output.stdout);
    // A compiler without one repeats the name.
    if let Some(directory) = Path::new(answer.trim()).parent().filter(|directory| directory.is_absolute()) {
        println!("cargo:rustc-link-search=native={}", directory.display());
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}
