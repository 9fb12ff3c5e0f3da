//! A program that is executed inherits the drop-in, unless that would disturb it.

mod common;
use common::{compile, library, same};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const WAYS: [&str; 18] = [
    "execve",
    "execv",
    "execvp",
    "execvpe",
    "execl",
    "execle",
    "execlp",
    "execveat",
    "execveat_empty",
    "fexecve",
    "fexecve_path",
    "handler",
    "SYS_execve",
    "SYS_execveat",
    "confined",
    "posix_spawn",
    "posix_spawnp",
    "vfork",
];

struct Case {
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Case {
    fn new() -> Case {
        let directory = tempfile::tempdir().unwrap();
        let program = compile(directory.path(), "inherits", &["-O1"]);
        Case { directory, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same program, in a directory of its own, built with other flags.
    fn variant(&self, name: &str, flags: &[&str]) -> PathBuf {
        std::fs::create_dir(self.path(name)).unwrap();
        compile(&self.path(name), "inherits", flags)
    }

    /// A library that does nothing.
    fn library(&self, name: &str) -> PathBuf {
        let (source, path) = (self.path("nothing.c"), self.path(name));
        std::fs::write(&source, "int nothing(void) { return 0; }\n").unwrap();
        let soname = format!("-Wl,-soname,{name}");
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", &soname, "-o"]).arg(&path).arg(source).status();
        assert!(compiled.unwrap().success());
        path
    }

    /// What a program says that is executed in this way. With `preload`, or not at all.
    fn says(&self, way: &str, target: &Path, variables: usize, hide: Option<&Path>, preload: &str) -> String {
        let mut command = Command::new(&self.program);
        command.arg(way).arg(target).arg(variables.to_string()).env_remove("LD_PRELOAD");
        if let Some(hide) = hide {
            command.arg(hide).arg(hide.with_extension("away"));
        }
        if !preload.is_empty() {
            command.env("LD_PRELOAD", preload);
        }
        let output = command.output().unwrap();
        if let Some(hide) = hide {
            std::fs::rename(hide.with_extension("away"), hide).unwrap();
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        assert!(output.status.success() && errors.is_empty(), "{way}: {:?} {said} {errors}", output.status);
        said
    }

    /// In all ways: it is the same as without the drop-in, but that it may say that it inherited `expected` in place of nothing.
    fn inherits(&self, target: &Path, hide: Option<&Path>, preload: &str, expected: &str) {
        for way in WAYS {
            let plain = self.says(way, target, 3, hide, "");
            let expected = if way == "confined" && expected == preload { "none" } else { expected };
            let expected = plain.replacen("none", expected, 1);
            assert!(plain.starts_with("none "), "{plain}");
            assert_eq!(self.says(way, target, 3, hide, preload), expected, "{way} {}", target.display());
        }
    }
}

fn ours() -> String {
    library().to_str().unwrap().to_owned()
}

#[test]
fn what_is_like_this_program_does() {
    let case = Case::new();
    case.inherits(&case.program, None, &ours(), &ours());
}

/// As of musl, or of an older glibc, which would be the program's end.
#[test]
fn what_asks_for_another_loader_does_not() {
    let case = Case::new();
    // The very same one, at another place.
    let copy = case.path("ld-linux-copy.so.2");
    std::fs::copy("/lib64/ld-linux-x86-64.so.2", &copy).unwrap();
    let flag = format!("-Wl,--dynamic-linker={}", copy.display());
    let target = case.variant("other", &[&flag]);
    case.inherits(&target, None, &ours(), "none");
    // Nor does what that loader is told to load.
    for (loader, expected) in [(copy.as_path(), "none"), (Path::new("/lib64/ld-linux-x86-64.so.2"), &*ours())]
    {
        for way in ["execv", "posix_spawn"] {
            let mut command = Command::new(&case.program);
            command.args([way, loader.to_str().unwrap(), "0"]);
            command.env("LD_PRELOAD", ours()).env("WORD", &case.program);
            let said = command.output().unwrap().stdout;
            let said = String::from_utf8_lossy(&said);
            assert_eq!(said.split(' ').next(), Some(expected), "{way} {}", loader.display());
        }
    }
    // Scripts of it neither.
    let script = case.path("other/script");
    std::fs::write(&script, format!("#! {} say\n", target.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    for way in ["execve", "execvp", "posix_spawn"] {
        let plain = case.says(way, &script, 0, None, "");
        assert_eq!(case.says(way, &script, 0, None, &ours()), plain);
    }
    // Environments of all sizes are the same but for that.
    for variables in [300, 5000] {
        for way in ["execve", "vfork", "posix_spawn"] {
            let plain = case.says(way, &target, variables, None, "");
            assert_eq!(case.says(way, &target, variables, None, &ours()), plain);
        }
    }
    // What else is preloaded is kept.
    let another = case.library("libanother.so");
    let (ours, another) = (ours(), another.to_str().unwrap());
    for list in
        [format!("{ours}:{another}"), format!("{another} {ours}"), format!("{another}:{ours} {another}")]
    {
        let rest = list.matches(another).map(|_| another).collect::<Vec<_>>().join(":");
        case.inherits(&target, None, &list, &rest);
    }
}

/// gcc's address sanitizer ends a program in which it is not the first.
#[test]
fn what_needs_another_library_first_does_not() {
    let case = Case::new();
    let first = case.library("libasan.so.99");
    let run_path = format!("-Wl,-rpath,{}", case.directory.path().display());
    let target = case.variant("sanitized", &["-Wl,--no-as-needed", first.to_str().unwrap(), &run_path]);
    case.inherits(&target, None, &ours(), "none");
    // Nor what has it preloaded.
    let first = first.to_str().unwrap();
    case.inherits(&case.program, None, &format!("{}:{first}", ours()), first);
}

/// As after chroot: the loader says that there is no such library.
#[test]
fn what_cannot_see_the_library_does_not() {
    let case = Case::new();
    let copy = case.path("libcopy.so");
    std::fs::copy(library(), &copy).unwrap();
    case.inherits(&case.program, Some(&copy), copy.to_str().unwrap(), "none");
}

#[test]
fn what_is_refused_is_refused_in_the_same_way() {
    let case = Case::new();
    let said = same(&case.program, &["refused"]);
    assert!(said.matches("Bad address").count() >= 4 && said.ends_with("none 0\n"), "{said}");
}
