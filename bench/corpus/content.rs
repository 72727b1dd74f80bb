//! Bytes that compress as the real ones do: text from templates of real-looking lines, machine code from a table of instruction words.

use std::sync::LazyLock;

use super::random::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Content {
    /// Triton's source, ttir and ttgir.
    Mlir,
    Llvm,
    Ptx,
    Python,
    Cuda,
    Json,
    /// Pickles that embed IR: compiled graphs, piecewise artifacts, AOT models.
    Pickle,
    /// A model of one rank; 70 % of its 64 KiB blocks are those of every rank of the family.
    SharedModel {
        family: u64,
    },
    Cubin,
    /// `.o` and `.so`.
    Object,
    /// Incompressible.
    Weights,
}

const SHARED_BLOCK: usize = 64 << 10;

impl Content {
    /// Fills `out` with exactly `size` bytes that depend on `seed` alone.
    pub(crate) fn render(self, size: usize, seed: u64, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(size + 512);
        let mut random = Random::new(seed);
        match self {
            Self::Mlir => text(&MLIR, &mut random, size, 0.45, out),
            Self::Llvm => text(&LLVM, &mut random, size, 0.35, out),
            Self::Ptx => text(&PTX, &mut random, size, 0.76, out),
            Self::Python => text(&PYTHON, &mut random, size, 0.35, out),
            Self::Cuda => text(&CUDA, &mut random, size, 0.3, out),
            Self::Json => text(&JSON, &mut random, size, 0.0, out),
            Self::Pickle => pickle(&mut random, size, out),
            Self::SharedModel { family } => shared_model(&mut random, size, family, out),
            Self::Cubin => machine_code(&mut random, size, 4, out),
            Self::Object => machine_code(&mut random, size, 5, out),
            Self::Weights => {
                out.resize(size, 0);
                random.fill(out);
            }
        }
        out.truncate(size);
    }
}

fn pickle(random: &mut Random, size: usize, out: &mut Vec<u8>) {
    while out.len() < size {
        let part = (size - out.len()).min(12_000 + random.below(24_000));
        let end = out.len() + part;
        let template = [&MLIR, &PTX, &PYTHON, &LLVM][random.below(4)];
        text(template, random, end, 0.85, out);
        machine_code(random, (end + part / 100).min(size), 4, out);
    }
}

fn shared_model(random: &mut Random, size: usize, family: u64, out: &mut Vec<u8>) {
    let mut block = Vec::with_capacity(SHARED_BLOCK);
    for index in 0.. {
        if out.len() >= size {
            break;
        }
        let shared = random.chance(0.7);
        let mut source = Random::new(if shared { family ^ index } else { random.next() });
        block.clear();
        pickle(&mut source, SHARED_BLOCK, &mut block);
        out.extend_from_slice(&block[..SHARED_BLOCK]);
    }
}

/// 16-byte instruction words: an opcode with its modifiers from a table, and `free` bytes of registers and offsets.
fn machine_code(random: &mut Random, size: usize, free: usize, out: &mut Vec<u8>) {
    const OPCODES: usize = 192;
    let mut table = [[0u8; 16]; OPCODES];
    let mut shared = Random::new(0x5a55);
    for word in &mut table {
        shared.fill(&mut word[..4]);
        shared.fill(&mut word[12..15]);
    }
    while out.len() < size {
        if random.chance(0.12) && out.len() > 1024 {
            // Unrolled loops repeat whole runs of instructions.
            let from = out.len() - 16 * (8 + random.below(56));
            out.extend_from_within(from..from + 16 * 8);
            continue;
        }
        let mut word = table[random.skewed(OPCODES)];
        let fresh = random.next().to_le_bytes();
        word[4..4 + free].copy_from_slice(&fresh[..free]);
        word[11] = fresh[6] & 0x3f;
        out.extend_from_slice(&word);
    }
}

/// Lines of a language. In a template `~n` is a new value number, `~r` one of the last values, `~t` a word of the vocabulary,
/// `~l` the source line, `~s` a small and `~b` a large number, `~h` eight hex digits.
struct Language {
    lines: Vec<Vec<Part>>,
    words: &'static [&'static str],
}

enum Part {
    Literal(&'static str),
    Slot(u8),
}

impl Language {
    fn new(words: &'static [&'static str], lines: &'static [&'static str]) -> Self {
        let lines = lines.iter().map(|line| parts(line)).collect();
        Self { lines, words }
    }
}

fn parts(line: &'static str) -> Vec<Part> {
    let mut pieces = line.split('~');
    let mut parts: Vec<Part> = pieces.next().into_iter().map(Part::Literal).collect();
    for piece in pieces {
        parts.push(Part::Slot(piece.as_bytes()[0]));
        parts.push(Part::Literal(&piece[1..]));
    }
    parts.push(Part::Literal("\n"));
    parts
}

/// Appends lines until `out` is at least `end` long. `repeat` is the share of lines that are an earlier line once more.
fn text(language: &Language, random: &mut Random, end: usize, repeat: f64, out: &mut Vec<u8>) {
    let mut recent: Vec<(usize, usize)> = Vec::with_capacity(64);
    let (mut value, mut source) = (random.below(64) as u64, 20 + random.below(200) as u64);
    while out.len() < end {
        let begin = out.len();
        if recent.len() > 8 && random.chance(repeat) {
            let (from, to) = recent[recent.len() - 1 - random.skewed(recent.len().min(64))];
            out.extend_from_within(from..to);
        } else {
            for part in &language.lines[random.skewed(language.lines.len())] {
                match part {
                    Part::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
                    Part::Slot(slot) => fill(*slot, language, random, &mut value, &mut source, out),
                }
            }
        }
        recent.push((begin, out.len()));
    }
}

fn fill(slot: u8, language: &Language, random: &mut Random, value: &mut u64, source: &mut u64, out: &mut Vec<u8>) {
    match slot {
        b'n' => {
            *value += 1;
            number(*value, out);
        }
        b'r' => number(value.saturating_sub(random.skewed(12) as u64), out),
        b't' => out.extend_from_slice(language.words[random.skewed(language.words.len())].as_bytes()),
        b'l' => {
            *source += random.skewed(3) as u64;
            number(*source, out);
        }
        b's' => number(random.skewed(16) as u64, out),
        b'b' => number(random.below(1 << 20) as u64, out),
        _ => {
            let mut word = random.next();
            for _ in 0..8 {
                out.push(b"0123456789abcdef"[(word & 15) as usize]);
                word >>= 4;
            }
        }
    }
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

static MLIR: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &[
            "tensor<128x64xf32, #blocked>",
            "tensor<128x!tt.ptr<bf16>, #blocked1>",
            "tensor<1x64xi32, #ttg.slice<{dim = 0, parent = #blocked}>>",
            "tensor<128x1xi32, #blocked>",
            "tensor<256xi1, #blocked2>",
            "tensor<128x128xf32, #mma>",
            "!ttg.memdesc<128x64xbf16, #shared, #smem, mutable>",
            "i32",
        ],
        &[
            "    %~n = arith.addi %~r, %~r : ~t loc(#loc~l)",
            "    %~n = arith.muli %~r, %~r : ~t loc(#loc~l)",
            "    %~n = tt.addptr %~r, %~r : ~t, ~t loc(#loc~l)",
            "    %~n = tt.load %~r, %~r, %cst_~s evictionPolicy = evict_last : ~t loc(#loc~l)",
            "    %~n = arith.constant dense<~s> : ~t loc(#loc)",
            "    %~n = tt.broadcast %~r : ~t -> ~t loc(#loc~l)",
            "    %~n = tt.expand_dims %~r {axis = ~s : i32} : ~t -> ~t loc(#loc~l)",
            "    %~n = arith.cmpi slt, %~r, %~r : ~t loc(#loc~l)",
            "    %~n = ttg.convert_layout %~r : ~t -> ~t loc(#loc~l)",
            "    %~n = arith.truncf %~r : ~t to ~t loc(#loc~l)",
            "    tt.store %~r, %~r, %~r : ~t loc(#loc~l)",
            "    %~n = ttng.warp_group_dot %~r, %~r, %~r {inputPrecision = 0 : i32, isAsync = true} : ~t * ~t -> ~t loc(#loc~l)",
            "#loc~n = loc(\"/tmp/torchinductor_root/k~s/ck~h.py\":~l:~s)",
            "    %~n = scf.for %arg~s = %c0_i32 to %~r step %c1_i32 iter_args(%arg~s = %~r, %arg~s = %~r) -> (~t, i32)  : i32 {",
        ],
    )
});

static LLVM: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &["i32", "float", "ptr addrspace(1)", "{ i32, i32, i32, i32 }", "<2 x bfloat>", "i64", "i1", "<1 x i32>"],
        &[
            "  %~n = extractvalue { i32, i32, i32, i32 } %~r, ~s, !dbg !~l",
            "  %~n = fmul float %~r, %~r, !dbg !~l",
            "  %~n = add nuw nsw i32 %~r, ~s, !dbg !~l",
            "  %~n = getelementptr bfloat, ptr addrspace(1) %~r, i64 %~r, !dbg !~l",
            "  %~n = insertvalue { float, float, float, float, float, float, float, float } %~r, float %~r, ~s, !dbg !~l",
            "  %~n = bitcast ~t %~r to ~t, !dbg !~l",
            "  %~n = tail call { i32, i32, i32, i32 } asm sideeffect \"mov.u32 $0, 0x0;\\0A\\09@$5 ld.global.v4.b32 { $0, $1, $2, $3 }, [ $4 + 0 ];\", \"=r,=r,=r,=r,l,b\"(ptr addrspace(1) %~r, i1 %~r) #~s, !dbg !~l",
            "  %~n = tail call float @llvm.nvvm.ex2.approx.ftz.f(float %~r), !dbg !~l",
            "  %~n = or disjoint i32 %~r, ~b, !dbg !~l",
            "  %~n = tail call i32 @llvm.nvvm.shfl.sync.bfly.i32(i32 -1, i32 %~r, i32 ~s, i32 31), !dbg !~l",
            "  br i1 %~r, label %.lr.ph~s, label %._crit_edge~s, !dbg !~l",
            "!~n = !DILocation(line: ~l, column: ~s, scope: !~s)",
        ],
    )
});

static PTX: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &["f32", "s32", "b32", "u64", "b16x2", "pred", "bf16x2", "u32"],
        &[
            "\tmul.f32 \t%f~n, %f~r, %f~r;",
            "\tadd.s32 \t%r~n, %r~r, ~s;",
            "\tmov.b32 \t%r~n, %f~r;",
            "\t.loc\t1 ~l ~s                         // ck~h.py:~l:~s",
            "\tfma.rn.f32 \t%f~n, %f~r, %f~r, %f~r;",
            "\tcvt.rn.bf16x2.f32 \t%r~n, %f~r, %f~r;",
            "\t@%p~s ld.global.v4.b32 { %r~n, %r~n, %r~n, %r~n }, [ %rd~r + 0 ];",
            "\tshl.b32 \t%r~n, %r~r, ~s;",
            "\tsetp.lt.~t \t%p~s, %r~r, ~s;",
            "\tshfl.sync.bfly.b32 \t%r~n, %r~r, ~s, 31, -1;",
            "\tst.shared.v4.b32 [ %r~r + ~b ], { %r~r, %r~r, %r~r, %r~r };",
            "\tex2.approx.ftz.f32 \t%f~n, %f~r;",
            "\tbar.sync \t0;",
            "$L__BB0_~s:                              // %.lr.ph~s",
        ],
    )
});

static PYTHON: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &["xnumel", "XBLOCK", "tl.int32", "bfloat16", "torch.float32", "cuda:0", "RBLOCK", "in_out_ptr0", "device_str"],
        &[
            "    tmp~n = tl.load(in_ptr~s + (x0 + ~b*x1), xmask, eviction_policy='evict_last').to(tl.float32)",
            "    tmp~n = tmp~r * tmp~r",
            "    tmp~n = tmp~r + tmp~r",
            "    buf~n = empty_strided_cuda((s~s, ~b), (~b, 1), torch.bfloat16)",
            "    extern_kernels.mm(buf~r, reinterpret_tensor(arg~s_1, (~b, ~b), (1, ~b), 0), out=buf~r)",
            "    triton_poi_fused_mul_silu_~s.run(buf~r, buf~r, ~b, grid=grid(~b), stream=stream0)",
            "    del arg~s_1, buf~r",
            "    # Topologically Sorted Source Nodes: [linear_~s, getitem_~s, silu_~s], Original ATen: [aten.~t, aten.mul]",
            "    assert_size_stride(arg~n_1, (~b, ~b), (~b, 1))",
            "    tmp~n = tl.where(xmask, tmp~r, ~t)",
            "    kernel_name='triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_~s', ~t=~b,",
            "    tl.store(out_ptr~s + (r0_1 + ~b*x0), tmp~r, r0_mask & xmask)",
            "    # File: /usr/local/lib/python3.12/site-packages/vllm/model_executor/layers/linear.py:~l, code: x = x.view(~b, ~s)",
            "    async_compile.triton('triton_per_fused_add_~s', '''  # kernel path: /tmp/torchinductor_root/~h.py",
        ],
    )
});

static CUDA: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &["uint32_t", "float", "__nv_bfloat16", "cutlass::float_e4m3_t", "GemmType::Normal", "int", "const half_t*"],
        &[
            "    auto desc_a_~n = make_smem_desc(smem_a[~s] + math_wg_idx * WGMMA::M * BLOCK_K + k * WGMMA::K, ~s);",
            "    ~t value_~n = __shfl_sync(0xffffffff, value_~r, ~s);",
            "#include <deep_gemm/impls/sm90_fp8_gemm_~s.cuh>",
            "    ((float*)acc)[~s] = __ldg(scales + ~b) * tmp[~s];",
            "    auto ptr_~n = reinterpret_cast<void*>(&sm90_fp8_gemm_1d2d_impl<~b, ~b, ~s, ~s, 128, ~s, ~s, ~t>);",
            "    tma_copy(&tensor_map_a, reinterpret_cast<uint64_t*>(&full_barrier), smem_a[~s], k_idx, ~b);",
            "    for (int i_~n = 0; i_~r < ~s; ++i_~r) {",
            "    *(uint4*)(B_shared + ((threadIdx.x * ~s) + ~b)) = *(uint4*)(B + ((blockIdx.x * ~b) + ~s));",
        ],
    )
});

static JSON: LazyLock<Language> = LazyLock::new(|| {
    Language::new(
        &["\"cuda\"", "true", "false", "null", "\"ieee\"", "[\"fp8e4nv\", \"fp8e5\"]", "90", "{}"],
        &[
            "{\"hash\": \"~h~h~h~h~h~h~h~h\", \"target\": {\"backend\": \"cuda\", \"arch\": 90, \"warp_size\": 32},",
            "\"num_warps\": ~s, \"num_ctas\": ~s, \"num_stages\": ~s, \"maxnreg\": ~t, \"cluster_dims\": [1, 1, 1],",
            "\"ptx_options\": ~t, \"enable_fp_fusion\": ~t, \"launch_cooperative_grid\": ~t, \"shared\": ~b,",
            "\"child_paths\": {\"kernel.ttgir\": \"/root/.cache/vllm/triton/~h~h~h/kernel.ttgir\"},",
            "\"supported_fp8_dtypes\": ~t, \"allow_fp8e4nv\": ~t, \"max_num_imprecise_acc_default\": ~b, \"name\": \"kernel_~s\",",
            "\"tmem_size\": ~s, \"global_scratch_size\": ~b, \"global_scratch_align\": ~s, \"triton_version\": \"3.~s.~s\",",
            "\"XBLOCK\": ~b, \"R0_BLOCK\": ~b, \"configs_hash\": \"~h~h\", \"found_by_coordesc\": ~t, \"time_taken_ms\": ~b}",
        ],
    )
});
