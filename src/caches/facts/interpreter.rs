//! Which Python runs the engine, read from the engine's command without running anything.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::caches::Environment;

/// What the kernel and the shell need of a script stands in its first bytes.
const MAX_HEAD: u64 = 4096;

const WAY_OUT: &str = "pass --python (or WARMD_PYTHON) with the engine's interpreter, such as /opt/venv/bin/python3";

/// A Python interpreter, and how the engine's command has it look for packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// Not resolved: a virtual environment is found by the link in its `bin`.
    pub python: PathBuf,
    /// Those of the command or the `#!` line, such as `-I`.
    pub options: Vec<String>,
    /// What Python puts first into its path: the script's directory, or with `-m` the working directory.
    pub first: Option<PathBuf>,
}

/// The interpreter could not be told. Every text says what to pass.
#[derive(Debug, thiserror::Error)]
pub enum InterpreterError {
    #[error("no `{program}` in PATH: {WAY_OUT}")]
    NotFound { program: String },
    #[error("there is no {program}: {WAY_OUT}", program = program.display())]
    Missing { program: PathBuf },
    #[error("read {program}: {error}: {WAY_OUT}", program = program.display())]
    Unreadable { program: PathBuf, error: io::Error },
    #[error("{program} {what}: {WAY_OUT}", program = program.display())]
    NotPython { program: PathBuf, what: &'static str },
}

impl Interpreter {
    /// Of the engine's command, in which `python` replaces the interpreter if it is given. The command's first word is
    /// looked up in the environment's `PATH`.
    pub fn find(
        command: &[String],
        python: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, InterpreterError> {
        let found = match command {
            [] => Err(InterpreterError::NotFound { program: "vllm".to_owned() }),
            [program, arguments @ ..] => of_command(program, arguments, environment),
        };
        let Some(python) = python else { return found };
        let python = lookup(&python.to_string_lossy(), environment)?;
        // Where the command cannot be read, the named interpreter still can: without what the command would add.
        Ok(match found {
            Ok(found) => Self { python, ..found },
            Err(_) => Self { python, options: Vec::new(), first: None },
        })
    }
}

fn of_command(program: &str, arguments: &[String], environment: &Environment) -> Result<Interpreter, InterpreterError> {
    let path = lookup(program, environment)?;
    if is_python(&path) {
        return Ok(of_python(path, arguments, environment));
    }
    let head = head(&path).map_err(|error| InterpreterError::Unreadable { program: path.clone(), error })?;
    let refused = |what| InterpreterError::NotPython { program: path.clone(), what };
    let Some(line) = head.strip_prefix("#!").and_then(|rest| rest.lines().next()) else {
        return Err(refused("is no script, so it names no Python interpreter"));
    };
    let mut words = line.split_whitespace().map(str::to_owned);
    let Some(interpreter) = words.next() else { return Err(refused("has an empty #! line")) };
    let (interpreter, options) = match file_name(Path::new(&interpreter)) {
        "env" => {
            let mut words = words.skip_while(|word| word.starts_with('-') || word.contains('='));
            let Some(name) = words.next() else { return Err(refused("names no program after `env`")) };
            (name, words.collect())
        }
        "sh" | "bash" | "dash" => match trampoline(&head, &path) {
            Some(python) => (python, Vec::new()),
            None => return Err(refused("is a shell script: which Python it runs cannot be told")),
        },
        _ => (interpreter, words.collect()),
    };
    let python = lookup(&interpreter, environment)?;
    if !is_python(&python) {
        return Err(refused("is not run by Python"));
    }
    let script = path.canonicalize().unwrap_or(path);
    let first = script.parent().filter(|_| !is_isolated(&options, environment)).map(Path::to_owned);
    Ok(Interpreter { python, options, first })
}

/// `python [options] -m module ...`, `python [options] script ...`
fn of_python(python: PathBuf, arguments: &[String], environment: &Environment) -> Interpreter {
    let mut options = Vec::new();
    let mut words = arguments.iter();
    let mut first = None;
    while let Some(word) = words.next() {
        match word.as_str() {
            "-m" | "-c" => {
                first = std::env::current_dir().ok();
                break;
            }
            "-W" | "-X" => options.extend([Some(word), words.next()].into_iter().flatten().cloned()),
            option if option.starts_with('-') && option.len() > 1 => options.push(option.to_owned()),
            script => {
                let script = Path::new(script).canonicalize().ok();
                first = script.as_deref().and_then(Path::parent).map(Path::to_owned);
                break;
            }
        }
    }
    let first = first.filter(|_| !is_isolated(&options, environment));
    Interpreter { python, options, first }
}

/// With `-I`, `-P` or PYTHONSAFEPATH Python adds nothing to its path.
fn is_isolated(options: &[String], environment: &Environment) -> bool {
    // `-X` and `-W` are followed by words.
    let letters =
        |option: &String| option.strip_prefix('-').filter(|rest| !rest.starts_with(['-', 'X', 'W'])).map(str::to_owned);
    let given = |wanted: &[char]| options.iter().filter_map(letters).any(|letters| letters.contains(wanted));
    given(&['I', 'P']) || (environment.get("PYTHONSAFEPATH").is_some() && !given(&['E']))
}

/// Installers write this for interpreters that a `#!` line cannot name, because of length or spaces: a text that is a
/// command to the shell and a string to Python.
fn trampoline(head: &str, script: &Path) -> Option<String> {
    let command = head.lines().nth(1)?.strip_prefix("'''exec' ")?;
    let (python, _) = command.split_once(" \"$0\" \"$@\"")?;
    let beside = python.strip_prefix("\"$(dirname -- \"$(realpath -- \"$0\")\")\"/");
    let quoted = beside.unwrap_or(python).trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| quoted.strip_prefix(*quote)?.strip_suffix(*quote));
    let name = unquoted.unwrap_or(quoted);
    match beside {
        None => Some(name.to_owned()),
        Some(_) => Some(script.canonicalize().ok()?.parent()?.join(name).to_str()?.to_owned()),
    }
}

/// As the shell looks a program up.
fn lookup(program: &str, environment: &Environment) -> Result<PathBuf, InterpreterError> {
    let not_found = || InterpreterError::NotFound { program: program.to_owned() };
    if program.contains('/') {
        let path = std::path::absolute(program).ok().filter(|path| path.is_file());
        return path.ok_or_else(|| InterpreterError::Missing { program: program.into() });
    }
    let directories = environment.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut candidates =
        std::env::split_paths(directories).filter_map(|directory| std::path::absolute(directory.join(program)).ok());
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    candidates.find(runs).ok_or_else(not_found)
}

/// `python`, `python3`, `python3.12`, `pypy3`.
fn is_python(path: &Path) -> bool {
    let name = file_name(path);
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    version.is_some_and(|version| version.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b't'))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or("")
}

fn head(path: &Path) -> io::Result<String> {
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(MAX_HEAD).read_to_end(&mut head)?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests;
