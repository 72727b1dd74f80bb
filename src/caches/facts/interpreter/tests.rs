use super::*;

/// Files that may be run, in one directory that is the `PATH`.
struct Bin(tempfile::TempDir);

impl Bin {
    fn with(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn environment(&self) -> Environment {
        [("PATH".to_owned(), self.path("").to_str().unwrap().to_owned())].into_iter().collect()
    }

    fn find(&self, command: &[&str]) -> Result<Interpreter, InterpreterError> {
        let command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        Interpreter::find(&command, None, &self.environment())
    }
}

const ELF: &str = "\x7fELF";

#[test]
fn a_console_scripts_first_line_names_the_interpreter() {
    let bin = Bin::with(&[("python3.12", ELF)]);
    let python = bin.path("python3.12");
    let shebang = format!("#!{} -s\nimport sys\n", python.display());
    std::fs::write(bin.path("vllm"), shebang).unwrap();
    std::fs::set_permissions(bin.path("vllm"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let found = bin.find(&["vllm", "serve", "m"]).unwrap();
    assert_eq!(found, Interpreter { python, options: vec!["-s".to_owned()], first: Some(bin.path("")) });
    assert_eq!(bin.find(&[bin.path("vllm").to_str().unwrap()]).unwrap(), found);
}

#[test]
fn env_in_the_first_line_looks_into_path() {
    for line in ["#!/usr/bin/env python3\n", "#!/usr/bin/env -S A=b python3 -u\n", "#! /usr/bin/env python3\n"] {
        let bin = Bin::with(&[("vllm", line), ("python3", ELF)]);
        assert_eq!(bin.find(&["vllm"]).unwrap().python, bin.path("python3"), "{line:?}");
    }
    let alone = Bin::with(&[("vllm", "#!/usr/bin/env python3\n")]);
    let error = alone.find(&["vllm"]).unwrap_err().to_string();
    assert!(error.contains("no `python3` in PATH") && error.contains("--python"), "{error}");
}

#[test]
fn the_trampolines_of_installers_are_understood() {
    for quote in ["\"", "'", ""] {
        let bin = Bin::with(&[("python3", ELF)]);
        let python = bin.path("python3");
        let text = format!("#!/bin/sh\n'''exec' {quote}{}{quote} \"$0\" \"$@\"\n' '''\nimport sys\n", python.display());
        let bin2 = Bin::with(&[("vllm", &text)]);
        assert_eq!(bin2.find(&["vllm"]).unwrap().python, python);
    }
    let relocatable =
        "#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python3' \"$0\" \"$@\"\n' '''\n";
    let bin = Bin::with(&[("venv/bin/vllm", relocatable), ("venv/bin/python3", ELF)]);
    std::os::unix::fs::symlink(bin.path("venv/bin/vllm"), bin.path("vllm")).unwrap();
    assert_eq!(bin.find(&["vllm"]).unwrap().python, bin.path("venv/bin/python3"));
}

#[test]
fn a_python_command_is_its_own_interpreter_with_its_options() {
    let bin = Bin::with(&[("python3", ELF), ("serve.py", "")]);
    let script = bin.path("serve.py");
    let here = std::env::current_dir().unwrap();
    let module = bin.find(&["python3", "-u", "-X", "utf8", "-m", "vllm.entrypoints.openai.api_server"]).unwrap();
    let options = ["-u", "-X", "utf8"].map(str::to_owned).to_vec();
    assert_eq!(module, Interpreter { python: bin.path("python3"), options, first: Some(here) });
    let with_script = bin.find(&["python3", script.to_str().unwrap(), "-m", "x"]).unwrap();
    assert_eq!(with_script.first.as_deref(), script.parent());
    for isolated in ["-I", "-sP"] {
        assert_eq!(bin.find(&["python3", isolated, "-m", "vllm"]).unwrap().first, None);
    }
}

#[test]
fn what_is_no_python_program_is_refused_with_the_way_out() {
    let bin = Bin::with(&[
        ("binary", ELF),
        ("entrypoint.sh", "#!/bin/bash\nexec python3 -m vllm\n"),
        ("empty", ""),
        ("perl", "#!/usr/bin/env cat\n"),
        ("cat", ELF),
    ]);
    let expected = [
        ("binary", "is no script"),
        ("entrypoint.sh", "is a shell script"),
        ("empty", "is no script"),
        ("perl", "is not run by Python"),
        ("none", "no `none` in PATH"),
    ];
    for (program, why) in expected {
        let error = bin.find(&[program]).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("--python"), "{error}");
    }
    assert!(bin.find(&[]).unwrap_err().to_string().contains("`vllm`"));
}

#[test]
fn a_named_interpreter_replaces_the_commands_own() {
    let bin = Bin::with(&[("python3", ELF), ("other/python3", ELF), ("entrypoint.sh", "#!/bin/sh\n")]);
    let other = bin.path("other/python3");
    let find = |command: &[String]| Interpreter::find(command, Some(&other), &bin.environment()).unwrap();
    let module = find(&["python3".to_owned(), "-m".to_owned(), "vllm".to_owned()]);
    assert_eq!((module.python, module.first), (other.clone(), std::env::current_dir().ok()));
    assert_eq!(
        find(&["entrypoint.sh".to_owned()]),
        Interpreter { python: other.clone(), options: vec![], first: None }
    );
    let missing = Interpreter::find(&[], Some(Path::new("/no/python")), &bin.environment()).unwrap_err();
    assert!(missing.to_string().contains("/no/python"));
}
