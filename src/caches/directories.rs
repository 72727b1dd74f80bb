//! Where caches are: the directory variables of vLLM, SGLang and their libraries, all below one cache root.
//!
//! Unless told otherwise the root is vLLM's own, `VLLM_CACHE_ROOT` or `~/.cache/vllm`: what is there stays in use, and a
//! volume that is mounted there keeps everything. The libraries' defaults are scattered over the home directory and
//! `/tmp`; without `TRITON_CACHE_DIR`, Inductor even has Triton keep one copy for each GPU. `TMPDIR` stays as it is, and
//! `TORCHINDUCTOR_CACHE_DIR` is not set because vLLM overrides it.

use std::path::{Path, PathBuf};

use super::Environment;

/// Those that are set, in order; none of them is in a key of vLLM.
pub const VARIABLES: [&str; 13] = [
    "VLLM_CACHE_ROOT",
    "TRITON_CACHE_DIR",
    "DG_JIT_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "TILELANG_CACHE_DIR",
    "CUTE_DSL_CACHE_DIR",
    "QUACK_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "HUMMING_CACHE_DIR",
    "TVM_FFI_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "SGLANG_CACHE_DIR",
    "SGLANG_DG_CACHE_DIR",
];

/// There is no cache root to be found, or it cannot be one.
#[derive(Debug, thiserror::Error)]
pub enum DirectoriesError {
    #[error("no cache root: neither VLLM_CACHE_ROOT, XDG_CACHE_HOME nor HOME is set; set WARMD_CACHE_ROOT")]
    NoRoot,
    #[error("cache root {root}: it must be an absolute path in UTF-8", root = .0.display())]
    Root(PathBuf),
}

/// The variables to set for an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    root: PathBuf,
    changes: Vec<(&'static str, String)>,
    kept: Vec<&'static str>,
}

impl Directories {
    /// What to set in `environment`. `root` is the user's choice; it comes before vLLM's own. What the user has set is
    /// kept.
    pub fn choose(root: Option<&Path>, environment: &Environment) -> Result<Self, DirectoriesError> {
        let root = root.map(Path::to_owned).or_else(|| vllm_cache_root(environment)).ok_or(DirectoriesError::NoRoot)?;
        if !root.is_absolute() || root.to_str().is_none() {
            return Err(DirectoriesError::Root(root));
        }
        let (kept, unset): (Vec<_>, Vec<_>) = VARIABLES.into_iter().partition(|name| environment.get(name).is_some());
        let changes = unset
            .into_iter()
            .map(|name| (name, place(name, &root, environment).to_string_lossy().into_owned()))
            .collect();
        Ok(Self { root, changes, kept })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Variables and their values, to be set for the engine.
    pub fn changes(&self) -> &[(&'static str, String)] {
        &self.changes
    }

    pub fn apply(&self, environment: &mut Environment) {
        for (name, value) in &self.changes {
            environment.set(name, value);
        }
    }

    /// One line for the user; `None` if nothing is changed.
    pub fn notice(&self) -> Option<String> {
        if self.changes.is_empty() {
            return None;
        }
        let names: Vec<&str> = self.changes.iter().map(|(name, _)| *name).collect();
        let kept =
            if self.kept.is_empty() { String::new() } else { format!("; kept as set: {}", self.kept.join(", ")) };
        Some(format!("cache directories are below {}: {}{kept}", self.root.display(), names.join(", ")))
    }
}

/// As `vllm.envs` has it.
fn vllm_cache_root(environment: &Environment) -> Option<PathBuf> {
    environment.directory("VLLM_CACHE_ROOT").or_else(|| {
        let caches = environment.directory("XDG_CACHE_HOME").or_else(|| Some(environment.home()?.join(".cache")));
        Some(caches?.join("vllm"))
    })
}

fn place(name: &str, root: &Path, environment: &Environment) -> PathBuf {
    match name {
        "VLLM_CACHE_ROOT" => root.to_owned(),
        // Said in another way already: Triton's own precedence.
        "TRITON_CACHE_DIR" => match environment.directory("TRITON_HOME") {
            Some(home) => home.join(".triton/cache"),
            None => root.join("triton"),
        },
        // Where vLLM puts it; both engines' kernels have the same keys.
        "DG_JIT_CACHE_DIR" => {
            environment.directory("VLLM_CACHE_ROOT").unwrap_or_else(|| root.to_owned()).join("deep_gemm")
        }
        "SGLANG_DG_CACHE_DIR" => match environment.directory("DG_JIT_CACHE_DIR") {
            Some(set) => set,
            None => place("DG_JIT_CACHE_DIR", root, environment),
        },
        "FLASHINFER_WORKSPACE_BASE" => root.join("flashinfer"),
        "TILELANG_CACHE_DIR" => root.join("tilelang"),
        "CUTE_DSL_CACHE_DIR" => root.join("cute_dsl"),
        "QUACK_CACHE_DIR" => root.join("quack"),
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR" => root.join("flash_attention"),
        "HUMMING_CACHE_DIR" => root.join("humming"),
        "TVM_FFI_CACHE_DIR" => root.join("tvm_ffi"),
        "CUDA_CACHE_PATH" => root.join("cuda"),
        _ => root.join("sglang"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The environment afterwards.
    fn chosen(root: Option<&str>, variables: &[(&str, &str)]) -> Environment {
        let mut environment = environment(variables);
        Directories::choose(root.map(Path::new), &environment).unwrap().apply(&mut environment);
        environment
    }

    #[test]
    fn the_root_is_the_users_choice_then_vllms_own() {
        let root = |root: Option<&str>, variables: &[(&str, &str)]| {
            Directories::choose(root.map(Path::new), &environment(variables)).unwrap().root().to_owned()
        };
        let all = [("HOME", "/home/u"), ("XDG_CACHE_HOME", "/xdg"), ("VLLM_CACHE_ROOT", "~/v")];
        assert_eq!(root(Some("/cache"), &all), Path::new("/cache"));
        assert_eq!(root(None, &all), Path::new("/home/u/v"));
        assert_eq!(root(None, &all[..2]), Path::new("/xdg/vllm"));
        assert_eq!(root(None, &all[..1]), Path::new("/home/u/.cache/vllm"));
        assert!(matches!(Directories::choose(None, &Environment::default()), Err(DirectoriesError::NoRoot)));
        let relative = Directories::choose(Some(Path::new("cache")), &Environment::default());
        assert!(matches!(relative, Err(DirectoriesError::Root(_))));
    }

    #[test]
    fn every_variable_has_a_directory_of_its_own_below_the_root() {
        let environment = chosen(Some("/cache"), &[]);
        let mut places: Vec<&str> = VARIABLES.iter().map(|name| environment.get(name).unwrap()).collect();
        assert!(places.iter().all(|place| Path::new(place).starts_with("/cache")));
        places.sort_unstable();
        places.dedup();
        // DeepGEMM's is shared by both engines.
        assert_eq!(places.len(), VARIABLES.len() - 1);
        assert_eq!(environment.get("VLLM_CACHE_ROOT"), Some("/cache"));
        assert_eq!(environment.get("DG_JIT_CACHE_DIR"), Some("/cache/deep_gemm"));
        // vLLM makes these below its root: none of ours may meet them.
        for taken in ["torch_compile_cache", "modelinfos", "flashinfer_autotune_cache", "startup_plan", "assets"] {
            assert!(places.iter().all(|place| !place.ends_with(taken)));
        }
    }

    #[test]
    fn what_the_user_set_is_kept_and_what_follows_from_it_too() {
        let variables =
            [("VLLM_CACHE_ROOT", "/old"), ("TRITON_HOME", "/t"), ("CUDA_CACHE_PATH", "/c"), ("QUACK_CACHE_DIR", "")];
        let environment = chosen(Some("/cache"), &variables);
        let expected = [
            ("VLLM_CACHE_ROOT", "/old"),
            ("DG_JIT_CACHE_DIR", "/old/deep_gemm"),
            ("SGLANG_DG_CACHE_DIR", "/old/deep_gemm"),
            ("TRITON_CACHE_DIR", "/t/.triton/cache"),
            ("CUDA_CACHE_PATH", "/c"),
            ("QUACK_CACHE_DIR", "/cache/quack"),
        ];
        for (name, value) in expected {
            assert_eq!(environment.get(name), Some(value), "{name}");
        }
        assert_eq!(environment.get("TMPDIR"), None);
        assert_eq!(environment.get("TORCHINDUCTOR_CACHE_DIR"), None);
    }

    #[test]
    fn the_notice_is_one_line_and_absent_when_nothing_is_set() {
        let directories = Directories::choose(Some(Path::new("/cache")), &environment(&[("CUDA_CACHE_PATH", "/c")]));
        let notice = directories.unwrap().notice().unwrap();
        assert!(
            notice.contains("/cache: VLLM_CACHE_ROOT, ") && notice.ends_with("kept as set: CUDA_CACHE_PATH"),
            "{notice}"
        );
        assert_eq!(notice.lines().count(), 1);
        let all = chosen(Some("/cache"), &[]);
        assert_eq!(Directories::choose(None, &all).unwrap().notice(), None);
    }
}
