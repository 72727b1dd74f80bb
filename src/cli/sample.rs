//! A small tree in the shape of what a vLLM node has after its first start: for trying warmd with nothing at hand.

use std::fs;
use std::io;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const WORDS: [&str; 16] = [
    "ld.global.b32",
    "st.shared.v4",
    "mma.sync.aligned",
    "triton_poi_fused",
    "tl.load",
    "tl.store",
    "BLOCK_SIZE",
    "num_warps=8",
    "mask=xmask",
    "%rd",
    "%f",
    "@p1 bra",
    "cvt.rn.bf16",
    "ttg.convert_layout",
    "tensor<64x128xbf16>",
    "loc",
];

/// About 1,000 files and 40 MB, always the same.
pub(super) fn make(root: &Path) -> io::Result<()> {
    let mut rng = StdRng::seed_from_u64(7);
    let aot = "torch_compile_cache/torch_aot_compile/f985d4c2590825d558b07caa7a963d3404c0bfd601b549d8f7929056e4e05d77";
    file(root, &format!("{aot}/rank_0_0/model"), &mixed(&mut rng, 9_000_000))?;
    for n in 0..60 {
        let name = hex(&mut rng, 16);
        let text = text(&mut rng, 6_000 + n * 400);
        file(root, &format!("{aot}/inductor_cache/{}/c{name}.py", &name[..2]), &text)?;
    }
    for _ in 0..110 {
        let key = hex(&mut rng, 26).to_uppercase();
        let kernel = format!("triton/{key}/triton_poi_fused_{}", rng.random_range(0..40));
        for (suffix, len) in [("source", 6), ("ttir", 10), ("ttgir", 16), ("llir", 40), ("ptx", 30), ("json", 1)] {
            let len = len * rng.random_range(600..1400);
            file(root, &format!("{kernel}.{suffix}"), &text(&mut rng, len))?;
        }
        file(root, &format!("{kernel}.cubin"), &mixed(&mut rng, 20_000))?;
    }
    for op in ["batch_prefill", "single_decode"] {
        for part in 0..4 {
            file(root, &format!("flashinfer/90a/cached_ops/{op}/kernel_{part}.o"), &mixed(&mut rng, 900_000))?;
        }
        file(root, &format!("flashinfer/90a/cached_ops/{op}/{op}.so"), &mixed(&mut rng, 4_000_000))?;
    }
    file(
        root,
        "modelinfos/vllm-model_executor-models-llama-LlamaForCausalLM.json",
        br#"{"is_text_generation_model":true}"#,
    )
}

fn file(root: &Path, path: &str, content: &[u8]) -> io::Result<()> {
    let path = root.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

fn hex(rng: &mut StdRng, len: usize) -> String {
    (0..len).map(|_| char::from(*b"0123456789abcdef".choose(rng).unwrap_or(&b'0'))).collect()
}

/// Compresses about as generated code does.
fn text(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut out = String::with_capacity(len + 40);
    while out.len() < len {
        out.push_str(WORDS.choose(rng).unwrap_or(&""));
        out.push_str(&format!(" {};\n", rng.random_range(0..4096)));
    }
    out.truncate(len);
    out.into_bytes()
}

/// Compresses about as machine code does: half noise, half tables.
fn mixed(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    for (block, bytes) in out.chunks_mut(256).enumerate() {
        if block % 2 == 0 {
            rng.fill(bytes);
        } else {
            bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 8) as u8);
        }
    }
    out
}
