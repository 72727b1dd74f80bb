//! Which tensors of an adapter belong together, by their names.

use std::collections::BTreeMap;

use super::safetensors::{Header, Tensor};

/// What the training library puts before the path of every module.
pub(super) const WRAPPER: &str = "base_model.model.";

/// A tensor's part in its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    A,
    B,
    Magnitude,
}

const ENDS: [(&str, Part); 4] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
];

/// What an adapter adds to one module: `B·A`, scaled; with a magnitude per output if it is weight-decomposed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Module<'h> {
    /// As in the keys.
    pub(super) path: &'h str,
    /// Rank by inputs.
    pub(super) a: Option<&'h Tensor>,
    /// Outputs by rank.
    pub(super) b: Option<&'h Tensor>,
    pub(super) magnitude: Option<&'h Tensor>,
}

impl<'h> Module<'h> {
    /// The last component of its path.
    pub(super) fn name(&self) -> &'h str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Its path in the model.
    pub(super) fn in_model(&self) -> &'h str {
        self.path.strip_prefix(WRAPPER).unwrap_or(self.path)
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &'h Tensor> {
        [self.a, self.b, self.magnitude].into_iter().flatten()
    }
}

/// The tensors of an adapter.
#[derive(Debug)]
pub(super) struct Modules<'h> {
    /// By path.
    pub(super) modules: Vec<Module<'h>>,
    /// Those that are no part of a low-rank adapter.
    pub(super) strays: Vec<&'h Tensor>,
}

impl<'h> Modules<'h> {
    pub(super) fn of(header: &'h Header) -> Self {
        let mut modules: BTreeMap<&str, Module<'_>> = BTreeMap::new();
        let mut strays = Vec::new();
        for tensor in header.tensors() {
            let Some((path, part)) = split(&tensor.name) else {
                strays.push(tensor);
                continue;
            };
            let empty = Module { path, a: None, b: None, magnitude: None };
            let module = modules.entry(path).or_insert(empty);
            let slot = match part {
                Part::A => &mut module.a,
                Part::B => &mut module.b,
                Part::Magnitude => &mut module.magnitude,
            };
            // A magnitude can be there under both of its names.
            match slot {
                Some(_) => strays.push(tensor),
                None => *slot = Some(tensor),
            }
        }
        Self { modules: modules.into_values().collect(), strays }
    }
}

/// The module's path and the tensor's part in it.
fn split(name: &str) -> Option<(&str, Part)> {
    let found = ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
    found.filter(|(path, _)| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_told_from_others() {
        assert_eq!(split("base_model.model.x.q_proj.lora_A.weight"), Some(("base_model.model.x.q_proj", Part::A)));
        assert_eq!(split("x.q_proj.lora_magnitude_vector"), Some(("x.q_proj", Part::Magnitude)));
        for name in
            [".lora_A.weight", "x.lora_A.bias", "x.lora_A.default.weight", "lm_head.weight", "x.lora_embedding_A"]
        {
            assert_eq!(split(name), None, "{name}");
        }
    }
}
