//! Which files a corpus has: counts, names and sizes as published or observed for real caches. Sizes in bytes, 1 KB = 1,000.

use super::content::Content;
use super::random::Random;
use super::{Kind, Planned};

const SIGMA: f64 = 0.8;
const KB: f64 = 1e3;
const MB: f64 = 1e6;

pub(crate) fn plan(kind: Kind, seed: u64, scale: f64) -> Vec<Planned> {
    let mut tree = Tree { random: Random::new(seed), files: Vec::new(), scale };
    match kind {
        Kind::A => tree.aot_dense(),
        Kind::B => tree.piecewise_dense(),
        Kind::C => tree.aot_large(),
        Kind::D => tree.many_small(),
        Kind::E => tree.small_moe(),
        Kind::F => tree.adapters(),
    }
    tree.files
}

struct Tree {
    random: Random,
    files: Vec<Planned>,
    scale: f64,
}

impl Tree {
    fn aot_dense(&mut self) {
        self.aot(1, 60, (8.0 * MB, 12.0 * MB));
        for _ in 0..self.count(100) {
            self.triton(1.0);
        }
        for op in 0..self.count(2) {
            let objects = 3 + self.random.below(4);
            self.flashinfer(op, objects, (0.3 * MB, 3.0 * MB), (2.0 * MB, 10.0 * MB));
        }
        self.model_infos(5);
        for index in 0..2 {
            self.add(format!("autotune/{index}.json"), Content::Json, 4.0 * KB);
        }
    }

    fn piecewise_dense(&mut self) {
        let root = format!("torch_compile_cache/{}/rank_0_0/backbone", self.hex(10));
        let common = self.file(String::new(), Content::Pickle, (2.2 * MB, 2.7 * MB));
        let artifacts = self.count(33);
        for index in 0..artifacts {
            let path = format!("{root}/artifact_compile_range_1_8192_subgraph_{index}");
            let own = self.file(path.clone(), Content::Pickle, (2.1 * MB, 3.4 * MB));
            // The first, the last and a few layers of another shape differ; all others are the same bytes.
            let differs = index < 2 || index + 3 >= artifacts;
            self.files.push(if differs { own } else { Planned { path, ..common.clone() } });
        }
        self.add(format!("{root}/vllm_compile_cache.py"), Content::Python, 4.4 * KB);
        let graph = self.file(format!("{root}/computation_graph.py"), Content::Python, (0.4 * MB, 0.8 * MB));
        self.files.push(graph);
        self.add(format!("{root}/cache_key_factors.json"), Content::Json, 8.0 * KB);
        for _ in 0..self.count(100) {
            self.triton(1.0);
        }
    }

    fn aot_large(&mut self) {
        self.aot(8, 1500, (15.0 * MB, 60.0 * MB));
        for index in 0..self.count(700) {
            // MoE and attention kernels are several times larger than the pointwise ones.
            self.triton(if index % 10 == 0 { 4.0 } else { 1.0 });
        }
        for _ in 0..self.count(350) {
            self.deep_gemm();
        }
        for _ in 0..self.count(15) {
            self.tilelang();
        }
        for op in 0..self.count(6) {
            let (objects, library) = if op == 0 { (180, (50.0 * MB, 150.0 * MB)) } else { (5, (2.0 * MB, 10.0 * MB)) };
            self.flashinfer(op, objects, (0.3 * MB, 5.0 * MB), library);
        }
    }

    fn many_small(&mut self) {
        for _ in 0..self.count(3000) {
            self.deep_gemm();
        }
        for _ in 0..self.count(2000) {
            self.triton(1.0);
        }
    }

    fn small_moe(&mut self) {
        for _ in 0..self.count(123) {
            self.deep_gemm();
        }
        for _ in 0..self.count(88) {
            self.triton(1.0);
        }
        self.add("triton/autotune.json".to_owned(), Content::Json, 0.6 * KB);
        for _ in 0..self.count(12) {
            self.tilelang();
        }
        for op in 0..self.count(2) {
            self.flashinfer(op, 7, (0.2 * MB, 0.8 * MB), (0.8 * MB, 2.0 * MB));
        }
        let path = format!("torch_compile_cache/torch_aot_compile/{}/rank_0_0/model", self.hex(64));
        let model = self.file(path, Content::Pickle, (1.0 * MB, 2.0 * MB));
        self.files.push(model);
    }

    fn adapters(&mut self) {
        for index in 0..self.count(50) {
            let root = format!("adapters/team-{:02}-{}", index % 7, self.hex(8));
            let weights =
                self.file(format!("{root}/adapter_model.safetensors"), Content::Weights, (20.0 * MB, 350.0 * MB));
            self.files.push(weights);
            for name in &["adapter_config", "tokenizer_config", "special_tokens_map", "added_tokens"][..2 + index % 3] {
                self.add(format!("{root}/{name}.json"), Content::Json, 1.1 * KB);
            }
        }
    }

    fn aot(&mut self, ranks: usize, sources: usize, model: (f64, f64)) {
        let root = format!("torch_compile_cache/torch_aot_compile/{}", self.hex(64));
        let family = self.random.next();
        for rank in 0..ranks {
            let content = if ranks > 1 { Content::SharedModel { family } } else { Content::Pickle };
            let file = self.file(format!("{root}/rank_{rank}_0/model"), content, model);
            self.files.push(file);
        }
        let cache = format!("{root}/inductor_cache");
        let pickles = (sources / 2).min(150);
        // The large corpus counts all inductor files together; the dense one counts each sort.
        let (python, configs) = if ranks > 1 { (sources - 2 * pickles, pickles) } else { (sources, sources) };
        for index in 0..self.count(python.max(configs)) {
            let name = format!("c{}", self.base32(51));
            if index < self.count(python) {
                let file = self.around(format!("{cache}/{}/{name}.py", &name[1..3]), Content::Python, 12.0 * KB);
                self.files.push(Planned { size: file.size.clamp(200, 60_000), ..file });
            }
            if index < self.count(configs) {
                self.add(format!("{cache}/{}/{name}.best_config", &name[1..3]), Content::Json, 0.2 * KB);
            }
        }
        for _ in 0..self.count(pickles) {
            let name = format!("f{}", self.base32(51));
            let file = self.file(
                format!("{cache}/fxgraph/{}/{name}/{}", &name[1..3], self_hash(&name)),
                Content::Pickle,
                (5.0 * KB, 200.0 * KB),
            );
            self.files.push(file);
        }
    }

    /// One kernel's directory. The files of a kernel grow together, so one factor scales all of them.
    fn triton(&mut self, larger: f64) {
        let root = format!("triton/{}", self.base32(52).to_uppercase());
        let name = self.kernel_name();
        let factor = larger * self.random.lognormal(KB, SIGMA, KB / 8.0, KB * 8.0) as f64 / KB;
        for (suffix, content, median) in [
            ("source", Content::Mlir, 6.0),
            ("ttir", Content::Mlir, 10.0),
            ("ttgir", Content::Mlir, 16.0),
            ("llir", Content::Llvm, 40.0),
            ("ptx", Content::Ptx, 30.0),
            ("cubin", Content::Cubin, 20.0),
        ] {
            let size = (median * KB * factor) as usize;
            let seed = self.random.next();
            self.files.push(Planned { path: format!("{root}/{name}.{suffix}"), content, size, seed });
        }
        self.add(format!("{root}/{name}.json"), Content::Json, 1.1 * KB);
        self.add(format!("{root}/__grp__{name}.json"), Content::Json, 1.2 * KB);
    }

    fn deep_gemm(&mut self) {
        let root = format!("deep_gemm/cache/kernel.fp8_gemm.{}", self.hex(32));
        let source = self.file(format!("{root}/kernel.cu"), Content::Cuda, (2.0 * KB, 5.0 * KB));
        let binary = self.around(format!("{root}/kernel.cubin"), Content::Cubin, 50.0 * KB);
        let binary = Planned { size: binary.size.clamp(30_000, 150_000), ..binary };
        self.files.extend([source, binary]);
    }

    fn tilelang(&mut self) {
        let root = format!("tilelang/{}", self.hex(64));
        self.add(format!("{root}/kernel.cu"), Content::Cuda, 8.0 * KB);
        self.add(format!("{root}/wrapped_kernel.cu"), Content::Cuda, 10.0 * KB);
        self.add(format!("{root}/params.pkl"), Content::Json, 0.8 * KB);
        self.add(format!("{root}/out_idx.json"), Content::Json, 0.2 * KB);
        let library = self.file(format!("{root}/kernel_lib.so"), Content::Object, (0.1 * MB, 0.6 * MB));
        self.files.push(library);
    }

    fn flashinfer(&mut self, op: usize, objects: usize, object: (f64, f64), library: (f64, f64)) {
        let root = format!("flashinfer/0.6/90a/cached_ops/op_{op}_{}", self.hex(8));
        for index in 0..objects {
            let file = self.file(format!("{root}/kernel_{index}.cuda.o"), Content::Object, object);
            self.files.push(file);
        }
        let file = self.file(format!("{root}/op_{op}.so"), Content::Object, library);
        self.files.push(file);
        self.add(format!("{root}/build.ninja"), Content::Cuda, 5.0 * KB);
        self.add(format!("{root}/.ninja_log"), Content::Json, 0.5 * KB);
        self.add(format!("{root}/.ninja_deps"), Content::Object, 20.0 * KB);
    }

    fn model_infos(&mut self, count: usize) {
        for index in 0..count {
            self.add(format!("modelinfos/vllm-model_executor-models-model_{index}.json"), Content::Json, 0.9 * KB);
        }
    }

    fn count(&self, full: usize) -> usize {
        ((full as f64 * self.scale).round() as usize).max(1)
    }

    /// A file of a size within the bounds, lognormal around their geometric mean.
    fn file(&mut self, path: String, content: Content, (low, high): (f64, f64)) -> Planned {
        let size = self.random.lognormal((low * high).sqrt(), SIGMA / 2.0, low, high);
        Planned { path, content, size, seed: self.random.next() }
    }

    fn around(&mut self, path: String, content: Content, median: f64) -> Planned {
        let size = self.random.lognormal(median, SIGMA, median / 8.0, median * 8.0);
        Planned { path, content, size, seed: self.random.next() }
    }

    fn add(&mut self, path: String, content: Content, median: f64) {
        let file = self.around(path, content, median);
        self.files.push(file);
    }

    fn kernel_name(&mut self) -> String {
        const VERBS: [&str; 8] = ["add", "mul", "rsqrt", "silu", "view", "cat", "mean", "clone"];
        let kind = ["poi", "red", "per", "tem"][self.random.below(4)];
        let (a, b) = (VERBS[self.random.below(8)], VERBS[self.random.below(8)]);
        format!("triton_{kind}_fused_{a}_{b}_{}", self.random.below(200))
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(b"0123456789abcdef"[self.random.below(16)])).collect()
    }

    fn base32(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[self.random.below(32)])).collect()
    }
}

fn self_hash(name: &str) -> String {
    name.chars().rev().collect()
}
