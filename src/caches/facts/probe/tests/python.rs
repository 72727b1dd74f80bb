//! The program itself, run by the Python of this machine over made-up installations. Where there is none, there is
//! nothing to run.

use super::*;

/// An installation in a directory.
struct Site {
    dir: tempfile::TempDir,
    python: PathBuf,
}

impl Site {
    /// `None` without a Python.
    fn with(files: &[(&str, &str)]) -> Option<Self> {
        let path = std::env::var("PATH").unwrap();
        let interpreter = std::env::split_paths(&path).map(|dir| dir.join("python3")).find(|path| path.is_file())?;
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir, python: interpreter };
        files.iter().for_each(|(name, text)| site.write(name, text));
        Some(site)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    async fn facts(&self, variables: &[(&str, &str)]) -> Facts {
        let path = std::env::var("PATH").unwrap();
        let variables = [("PATH", path.as_str())].into_iter().chain(variables.iter().copied());
        let probe = Probe {
            // Without the packages of the machine.
            interpreter: Interpreter {
                python: self.python.clone(),
                options: vec!["-S".to_owned()],
                first: Some(self.dir.path().to_owned()),
            },
            environment: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            deadline: Duration::from_secs(60),
            cache: None,
        };
        probe.run().await.unwrap().facts
    }
}

const TORCH: &str = "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n\
                     git_version = 'cf30'\nhip: Optional[str] = None\n";

/// A broken engine: whoever imports it knows.
const BROKEN: &str = "raise ImportError('libcudart.so.13: cannot open shared object file')\n";

const VLLM: [(&str, &str); 7] = [
    ("torch/__init__.py", BROKEN),
    ("torch/version.py", TORCH),
    ("vllm/__init__.py", BROKEN),
    ("vllm/_version.py", "__version__ = version = '0.32.0'\n"),
    ("vllm/a/b.py", "x = 1\n"),
    ("vllm-0.32.0+cpu.dist-info/RECORD", "vllm/a/b.py,sha256=x,6\nvllm/a/b.pyc,,\n"),
    ("Apache_TVM.ffi-0.1.dist-info/METADATA", ""),
];

#[tokio::test]
async fn versions_are_read_from_files_even_if_the_packages_cannot_be_imported() {
    let Some(site) = Site::with(&VLLM) else { return };
    let facts = site.facts(&[]).await;
    let expected = [
        (Fact::Torch, "2.13.0+cu130"),
        (Fact::TorchGit, "cf30"),
        (Fact::Cuda, "13.0"),
        (Fact::Vllm, "0.32.0"),
        (Fact::Device, "cpu"),
        (Fact::TvmFfi, "0.1"),
        (Fact::SitePackages, site.dir.path().to_str().unwrap()),
    ];
    for (fact, value) in expected {
        assert_eq!(facts.value(fact), Some(value), "{fact}: {:?}", facts.get(fact));
    }
    assert!(matches!(facts.get(Fact::Sglang), Some(Known::Absent(why)) if why == "sglang is not installed"));
    assert!(facts.value(Fact::Image).unwrap().starts_with("packages "));
    assert_eq!(facts.failed().collect::<Vec<_>>(), []);
}

#[tokio::test]
async fn a_python_without_torch_is_told_to_be_the_wrong_one() {
    let Some(site) = Site::with(&[]) else { return };
    let facts = site.facts(&[]).await;
    assert!(matches!(facts.get(Fact::Torch), Some(Known::Failed(why)) if why.contains("--python")));
}

#[tokio::test]
async fn a_damaged_package_fails_by_name_and_alone() {
    let Some(site) = Site::with(&VLLM) else { return };
    site.write("torch/version.py", "__version__ =\n");
    site.write("vllm/_version.py", "version = None\n");
    let facts = site.facts(&[]).await;
    assert!(matches!(facts.get(Fact::Torch), Some(Known::Failed(why)) if why.contains("SyntaxError")));
    assert!(
        matches!(facts.get(Fact::Vllm), Some(Known::Failed(why)) if why.contains("_version.py has no `__version__`"))
    );
    assert!(facts.value(Fact::VllmSource).is_some());
}

#[tokio::test]
async fn a_digest_of_sources_is_about_names_and_contents_only() {
    let Some(site) = Site::with(&VLLM) else { return };
    let before = site.facts(&[]).await;
    let digest = |facts: &Facts| facts.value(Fact::VllmSource).unwrap().to_owned();
    fs::File::open(site.path("vllm/a/b.py")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    site.write("vllm/__pycache__/c.py", "cached");
    site.write("vllm/notes.txt", "text");
    assert_eq!(digest(&site.facts(&[]).await), digest(&before));
    site.write("vllm/a/b.py", "x = 2\n");
    let changed = site.facts(&[]).await;
    assert_ne!(digest(&changed), digest(&before));
    fs::rename(site.path("vllm/a/b.py"), site.path("vllm/a/c.py")).unwrap();
    assert_ne!(digest(&site.facts(&[]).await), digest(&changed));
}

#[tokio::test]
async fn a_large_library_is_taken_from_record_unless_it_is_newer() {
    let library = "x".repeat(9 << 20);
    let record = "triton/_C/libtriton.so,sha256=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA,9437184\n";
    let files =
        [("triton/__init__.py", ""), ("triton/_C/libtriton.so", &library), ("triton-3.7.dist-info/RECORD", record)];
    let Some(site) = Site::with(&files) else { return };
    let set_time = |name: &str, seconds: u64| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(site.path(name)).unwrap().set_modified(time).unwrap();
    };
    set_time("triton-3.7.dist-info/RECORD", 1000);
    set_time("triton/_C/libtriton.so", 1000);
    let recorded = site.facts(&[]).await.value(Fact::Triton).unwrap().to_owned();
    assert!(recorded.starts_with("3.7 "));
    set_time("triton/_C/libtriton.so", 1001);
    let read = site.facts(&[]).await.value(Fact::Triton).unwrap().to_owned();
    assert_ne!(read, recorded);
    fs::remove_file(site.path("triton-3.7.dist-info/RECORD")).unwrap();
    assert_eq!(site.facts(&[]).await.value(Fact::Triton), Some(read.as_str()));
}

#[tokio::test]
async fn the_instruction_set_follows_the_variables_of_torch() {
    let Some(site) = Site::with(&[]) else { return };
    site.write("bin/c++", "#!/bin/sh\necho 'c++ 12.2'\n");
    fs::set_permissions(site.path("bin/c++"), fs::Permissions::from_mode(0o755)).unwrap();
    let compiler = site.path("bin/c++");
    let cxx = ("CXX", compiler.to_str().unwrap());
    let facts = site.facts(&[cxx, ("TORCHINDUCTOR_VEC_ISA_OK", "0"), ("TORCHINDUCTOR_CPP_MARCH", "znver4")]).await;
    assert_eq!(facts.value(Fact::CpuIsa), Some("INVALID_VEC_ISA"));
    assert_eq!(facts.value(Fact::CpuFlags), Some("march=znver4"));
    assert_eq!(facts.value(Fact::Compiler), Some("c++ 12.2"));
    let facts = site.facts(&[("CXX", "/no/c++")]).await;
    assert!(matches!(facts.get(Fact::CpuIsa), Some(Known::Absent(why)) if why.contains("/no/c++")));
}

/// A program in the place of NVIDIA's: containers may have it without the library.
fn smi(site: &Site, lines: &str) -> String {
    site.write("bin/nvidia-smi", &format!("#!/bin/sh\ncat <<'END'\n{lines}\nEND\n"));
    fs::set_permissions(site.path("bin/nvidia-smi"), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", site.path("bin").display(), std::env::var("PATH").unwrap())
}

#[tokio::test]
async fn gpus_are_those_that_cuda_would_see() {
    let Some(site) = Site::with(&[("torch/__init__.py", BROKEN), ("torch/version.py", TORCH)]) else { return };
    if Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    let path = smi(&site, "0, NVIDIA H200, 9.0, GPU-aa\n1, NVIDIA A100-SXM4-80GB, 8.0, GPU-bb");
    let both = site.facts(&[("PATH", &path)]).await;
    assert!(matches!(both.get(Fact::GpuName), Some(Known::Failed(why)) if why.contains("CUDA_VISIBLE_DEVICES")));
    for chosen in ["1", "GPU-bb", "GPU-b"] {
        let one = site.facts(&[("PATH", &path), ("CUDA_VISIBLE_DEVICES", chosen)]).await;
        assert_eq!(one.value(Fact::GpuName), Some("NVIDIA A100-SXM4-80GB"), "{chosen}");
        assert_eq!((one.value(Fact::GpuArch), one.value(Fact::Device)), (Some("8.0"), Some("cuda")));
        assert!(matches!(one.get(Fact::SmCount), Some(Known::Absent(_))));
    }
    let none = site.facts(&[("PATH", &path), ("CUDA_VISIBLE_DEVICES", "")]).await;
    assert!(matches!(none.get(Fact::GpuName), Some(Known::Absent(_))));
    assert!(matches!(none.get(Fact::Device), Some(Known::Failed(why)) if why.contains("run this where the engine")));
}
