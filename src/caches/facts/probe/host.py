# The host: processor, C library, compilers.


def which(program):
    for directory in [""] if "/" in program else ENV.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return watched(path)
    raise Absent("no `%s` in PATH" % program)


def output(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-200:]
        raise OSError("`%s` exited with %d: %s" % (" ".join(command), done.returncode, said))
    return done.stdout.decode("utf-8", "replace")


def release(program):
    """NVIDIA's compilers tell their version in the same words."""
    said = re.search(r"release [\d.]+, V[\d.]+", output(program, "--version"))
    if not said:
        raise ValueError("`%s --version` names no release" % program)
    return said.group(0)


def libc():
    name = os.confstr("CS_GNU_LIBC_VERSION")
    if not name:
        raise ValueError("not glibc: confstr has no CS_GNU_LIBC_VERSION")
    return name


@functools.lru_cache(None)
def processor():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    raise ValueError("/proc/cpuinfo lists no flags")


def cxx():
    """As torch._inductor.cpp_builder.get_cpp_compiler()."""
    return which(ENV.get("CXX") or "g++")


def compiler():
    return output(cxx(), "--version").splitlines()[0]


def knows(*options):
    try:
        output(cxx(), *options, "-E", "-x", "c++", "/dev/null")
    except OSError:
        return False
    return True


def cpu_isa():
    """As torch._inductor.cpu_vec_isa.pick_vec_isa(), which compiles a test; the outcome is in doubt for AMX only."""
    flags, wanted = processor(), ENV.get("ATEN_CPU_CAPABILITY")
    try:
        cxx()
    except Absent as absent:
        raise Absent("%s: torch compiles nothing for the CPU" % absent)
    if ENV.get("TORCHINDUCTOR_VEC_ISA_OK") == "0" or (wanted == "default" and os.uname().machine == "x86_64"):
        return "INVALID_VEC_ISA"
    if os.uname().machine != "x86_64":
        return "asimd" if "asimd" in flags else "INVALID_VEC_ISA"
    names = []
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags:
        names = ["avx512"] + ["avx512_vnni"] * ("avx512_vnni" in flags)
        if {"amx_tile", "avx512_vnni"} <= flags and knows("-mamx-tile", "-mamx-bf16", "-mamx-int8"):
            names.append("amx_tile")
    if "avx2" in flags and (wanted == "avx2" or not names):
        return "avx2"
    return " ".join(names) or "INVALID_VEC_ISA"


# What a compiler may use by itself; the rest of the flags are about the kernel and the hypervisor.
EXTENSION = re.compile(
    r"3dnow|abm|adx|aes|amx|apx|avx|bmi|cldemote|clflushopt|clwb|clzero|cmpccxadd|cx16|enqcmd|f16c|fma|fsgsbase|gfni|lahf"
    r"|lwp|mov(be|dir)|mwaitx|pclmul|pconfig|pni$|popcnt|ptwrite|raoint|rd(pid|rand|seed)|rtm|serialize|sha|sm[34]$|s?sse"
    r"|tbm|tsxldtrk|uintr|vaes|vpclmul|waitpkg|wbnoinvd|widekl|xop|xsave"
)


def cpu_flags():
    """Inductor compiles with -march=native (torch._inductor.cpp_builder): the compiler may use each of these."""
    march = ENV.get("TORCHINDUCTOR_CPP_MARCH")
    if march is not None:
        return "march=%s" % march
    if os.uname().machine == "x86_64":
        return " ".join(sorted(flag for flag in processor() if EXTENSION.match(flag)))
    length = "/proc/sys/abi/sve_default_vector_length"
    return " ".join(sorted(processor()) + (["sve_bytes=%s" % text(length).strip()] if os.path.exists(length) else []))


@functools.lru_cache(None)
def cuda_home():
    """As torch.utils.cpp_extension.CUDA_HOME."""
    home = ENV.get("CUDA_HOME") or ENV.get("CUDA_PATH")
    if not home:
        try:
            home = os.path.dirname(os.path.dirname(which("nvcc")))
        except Absent:
            home = "/usr/local/cuda"
    if not os.path.isdir(watched(home)):
        raise Absent("no CUDA toolkit: CUDA_HOME is not set, no nvcc in PATH, no /usr/local/cuda")
    return home


def nvcc():
    path = watched(os.path.join(cuda_home(), "bin", "nvcc"))
    if not os.path.isfile(path):
        raise Absent("no %s" % path)
    return release(path)


def cuda_library(name, *distributions):
    """The version of a package, or the one in the file name of the toolkit's or system's library."""
    try:
        return version(*distributions)
    except Absent as absent:
        reason = "%s, and no lib%s.so in the toolkit" % (absent, name)
    places = ["/usr/lib/%s-linux-gnu" % os.uname().machine]
    try:
        places.insert(0, os.path.join(cuda_home(), "lib64"))
    except Absent:
        pass
    for place in filter(os.path.isdir, places):
        for entry in sorted(os.listdir(place), reverse=True):
            if re.fullmatch(r"lib%s\.so\.\d+" % name, entry):
                return os.path.realpath(watched(os.path.join(place, entry))).rpartition(".so.")[2]
    raise Absent(reason)
