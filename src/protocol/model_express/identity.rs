//! Source identities and their digest, which every client computes too and expects to be the same.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use prost::Message;
use serde_json::Value;

use super::{MAX_IDENTITY, pb};
use crate::protocol::ProtocolError;

/// `mx_source_id`: the first 8 bytes of a digest. Text form: 16 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId([u8; 8]);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for SourceId {
    type Err = ProtocolError;
    fn from_str(text: &str) -> Result<Self, ProtocolError> {
        if text.is_empty() {
            return Err(ProtocolError::Missing("mx_source_id"));
        }
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(ProtocolError::Invalid("mx_source_id"))
    }
}

/// What decides whether weights can be reused. It names a model and is at most [`MAX_IDENTITY`] bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity(pb::SourceIdentity);

impl TryFrom<pb::SourceIdentity> for Identity {
    type Error = ProtocolError;
    fn try_from(identity: pb::SourceIdentity) -> Result<Self, ProtocolError> {
        if identity.model_name.is_empty() {
            return Err(ProtocolError::Missing("identity.model_name"));
        }
        if identity.encoded_len() > MAX_IDENTITY {
            return Err(ProtocolError::TooMany { field: "identity", limit: MAX_IDENTITY });
        }
        Ok(Self(identity))
    }
}

impl From<Identity> for pb::SourceIdentity {
    fn from(identity: Identity) -> Self {
        identity.0
    }
}

impl Identity {
    /// SHA-256 over its canonical JSON, cut.
    pub fn source_id(&self) -> SourceId {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.canonical().as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest.as_ref()[..8]);
        SourceId(id)
    }

    pub fn model(&self) -> &str {
        &self.0.model_name
    }

    /// Of weights in training: which step they are of.
    pub fn training_step(&self) -> Option<u64> {
        let parameters = &self.0.extra_parameters;
        parameters.get("training_step").or_else(|| parameters.get("version"))?.parse().ok()
    }

    pub fn layout_signature(&self) -> Option<&str> {
        self.0.extra_parameters.get("layout_signature").map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Bytes as a message.
    pub fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    /// Compact JSON with sorted keys and all text in lower case.
    fn canonical(&self) -> String {
        let identity = &self.0;
        let text = |text: &str| Value::from(text.to_lowercase());
        let mut fields = BTreeMap::from([
            ("mx_version", text(&identity.mx_version)),
            ("mx_source_type", identity.mx_source_type.into()),
            ("model_name", text(&identity.model_name)),
            ("backend_framework", identity.backend_framework.into()),
            ("tensor_parallel_size", identity.tensor_parallel_size.into()),
            ("pipeline_parallel_size", identity.pipeline_parallel_size.into()),
            ("expert_parallel_size", identity.expert_parallel_size.into()),
            ("dtype", text(&identity.dtype)),
            ("quantization", text(&identity.quantization)),
            ("extra_parameters", self.canonical_parameters()),
            ("revision", text(&identity.revision)),
        ]);
        let optional = [
            ("backend_framework_version", &identity.backend_framework_version),
            ("torch_version", &identity.torch_version),
            ("cuda_version", &identity.cuda_version),
            ("triton_version", &identity.triton_version),
            ("gpu_arch", &identity.gpu_arch),
            ("compile_config_digest", &identity.compile_config_digest),
        ];
        fields.extend(
            optional.into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name, text(value))),
        );
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()).to_string()
    }

    /// Of keys that differ in case only, the one that sorts first counts.
    fn canonical_parameters(&self) -> Value {
        let told: BTreeMap<_, _> = self.0.extra_parameters.iter().collect();
        let mut sorted = BTreeMap::new();
        for (key, value) in told {
            if let Entry::Vacant(place) = sorted.entry(key.to_lowercase()) {
                place.insert(Value::from(value.to_lowercase()));
            }
        }
        Value::Object(sorted.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn deepseek(version: &str) -> pb::SourceIdentity {
        pb::SourceIdentity {
            mx_version: version.to_owned(),
            model_name: "deepseek-ai/DeepSeek-V3".to_owned(),
            backend_framework: pb::BackendFramework::Vllm.into(),
            tensor_parallel_size: 8,
            pipeline_parallel_size: 1,
            dtype: "bfloat16".to_owned(),
            ..Default::default()
        }
    }

    fn id(identity: pb::SourceIdentity) -> String {
        Identity::try_from(identity).unwrap().source_id().to_string()
    }

    #[test]
    fn source_ids_are_those_that_existing_clients_compute() {
        let vectors = [
            ("0.5.0", ["5a5f555570065064", "d0c184b2a9a34c82", "bf71fb9340cd940a"]),
            ("0.8.0", ["e0d1bc7459cb4cde", "96db7e109daf9e53", "f4eeab03e859b088"]),
        ];
        for (version, [plain, with_revision, with_parameters]) in vectors {
            assert_eq!(id(deepseek(version)), plain);
            let mut identity = deepseek(version);
            identity.revision = "abc123def4567890".to_owned();
            assert_eq!(id(identity), with_revision);
            let mut identity = deepseek(version);
            identity.extra_parameters = [("Foo", "a"), ("foo", "b")].map(|(k, v)| (k.into(), v.into())).into();
            assert_eq!(id(identity), with_parameters);
        }
    }

    #[test]
    fn the_digest_is_over_compact_sorted_lower_case_json_that_escapes_only_what_it_must() {
        let mut identity = deepseek("0.8.0");
        identity.model_name = "Modèle\n\"7B\"/\u{7f}\u{1}".to_owned();
        identity.gpu_arch = "SM90".to_owned();
        let canonical = Identity::try_from(identity).unwrap().canonical();
        let expected = concat!(
            r#"{"backend_framework":1,"dtype":"bfloat16","expert_parallel_size":0,"extra_parameters":{},"gpu_arch":"sm90","#,
            r#""model_name":"modèle\n\"7b\"/"#,
            "\u{7f}",
            r#"\u0001","mx_source_type":0,"mx_version":"0.8.0","pipeline_parallel_size":1,"quantization":"","revision":"","#,
            r#""tensor_parallel_size":8}"#
        );
        assert_eq!(canonical, expected);
    }

    #[test]
    fn an_identity_names_a_model_and_is_small() {
        let refused = |identity| Identity::try_from(identity).unwrap_err();
        assert_eq!(refused(pb::SourceIdentity::default()), ProtocolError::Missing("identity.model_name"));
        let long = pb::SourceIdentity { dtype: "x".repeat(MAX_IDENTITY), ..deepseek("0.5.0") };
        assert_eq!(refused(long), ProtocolError::TooMany { field: "identity", limit: MAX_IDENTITY });
    }

    #[test]
    fn steps_and_layouts_come_from_the_parameters() {
        let of = |parameters: &[(&str, &str)]| {
            let extra_parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Identity(pb::SourceIdentity { extra_parameters, ..deepseek("0.5.0") })
        };
        assert_eq!(of(&[("version", "41")]).training_step(), Some(41));
        assert_eq!(of(&[("version", "41"), ("training_step", "42")]).training_step(), Some(42));
        assert_eq!(of(&[("version", "41"), ("training_step", "x")]).training_step(), None);
        assert_eq!(of(&[("layout_signature", "")]).layout_signature(), None);
        assert_eq!(of(&[("layout_signature", "a")]).layout_signature(), Some("a"));
    }

    #[test]
    fn source_ids_are_read_as_they_are_written() {
        let text = id(deepseek("0.5.0"));
        assert_eq!(text.parse::<SourceId>().unwrap().to_string(), text);
        for wrong in ["5A5F555570065064", "5a5f55557006506", "5a5f5555700650641", "5a5f55557006506g"] {
            assert_eq!(wrong.parse::<SourceId>(), Err(ProtocolError::Invalid("mx_source_id")), "{wrong}");
        }
        assert_eq!("".parse::<SourceId>(), Err(ProtocolError::Missing("mx_source_id")));
    }

    fn arb_identity() -> impl Strategy<Value = pb::SourceIdentity> {
        let text = "[a-zA-Z0-9 .\"\\\\/]{0,8}";
        let parameters = prop::collection::hash_map("[a-cA-C]{1,2}", text, 0..5);
        (prop::array::uniform5(text), prop::array::uniform6(text), prop::array::uniform5(0u32..5), parameters).prop_map(
            |([mx_version, name, dtype, quantization, revision], optional, numbers, extra_parameters)| {
                let [backend_framework_version, torch_version, cuda_version, triton_version, gpu_arch, digest] =
                    optional;
                let [kind, framework, tensor, pipeline, expert] = numbers;
                pb::SourceIdentity {
                    mx_version,
                    mx_source_type: kind as i32,
                    model_name: format!("m{name}"),
                    backend_framework: framework as i32,
                    tensor_parallel_size: tensor,
                    pipeline_parallel_size: pipeline,
                    expert_parallel_size: expert,
                    dtype,
                    quantization,
                    extra_parameters,
                    revision,
                    backend_framework_version,
                    torch_version,
                    cuda_version,
                    triton_version,
                    gpu_arch,
                    compile_config_digest: digest,
                }
            },
        )
    }

    /// The same rules, written down as JSON by hand.
    fn by_hand(identity: &pb::SourceIdentity) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.to_lowercase().replace('\\', "\\\\").replace('"', "\\\""));
        let mut parameters: Vec<_> = identity.extra_parameters.iter().collect();
        parameters.sort();
        let mut kept: Vec<(String, String)> = Vec::new();
        for (key, value) in parameters {
            if kept.iter().all(|(have, _)| *have != quoted(key)) {
                kept.push((quoted(key), quoted(value)));
            }
        }
        kept.sort();
        let kept: Vec<String> = kept.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        let mut out = vec![format!("\"backend_framework\":{}", identity.backend_framework)];
        let mut add = |name: &str, value: String| out.push(format!("\"{name}\":{value}"));
        let mut add_unless_empty = |name: &str, value: &str| {
            if !value.is_empty() {
                add(name, quoted(value));
            }
        };
        add_unless_empty("backend_framework_version", &identity.backend_framework_version);
        add_unless_empty("compile_config_digest", &identity.compile_config_digest);
        add_unless_empty("cuda_version", &identity.cuda_version);
        add("dtype", quoted(&identity.dtype));
        add("expert_parallel_size", identity.expert_parallel_size.to_string());
        add("extra_parameters", format!("{{{}}}", kept.join(",")));
        if !identity.gpu_arch.is_empty() {
            add("gpu_arch", quoted(&identity.gpu_arch));
        }
        add("model_name", quoted(&identity.model_name));
        add("mx_source_type", identity.mx_source_type.to_string());
        add("mx_version", quoted(&identity.mx_version));
        add("pipeline_parallel_size", identity.pipeline_parallel_size.to_string());
        add("quantization", quoted(&identity.quantization));
        add("revision", quoted(&identity.revision));
        add("tensor_parallel_size", identity.tensor_parallel_size.to_string());
        for (name, value) in [("torch_version", &identity.torch_version), ("triton_version", &identity.triton_version)]
        {
            if !value.is_empty() {
                add(name, quoted(value));
            }
        }
        format!("{{{}}}", out.join(","))
    }

    proptest! {
        #[test]
        fn every_identity_has_the_json_that_the_rules_say(identity in arb_identity()) {
            let expected = by_hand(&identity);
            prop_assert_eq!(Identity(identity).canonical(), expected);
        }

        #[test]
        fn case_does_not_count_and_everything_else_does(identity in arb_identity(), other in arb_identity()) {
            let mut loud = identity.clone();
            loud.model_name = loud.model_name.to_uppercase();
            loud.dtype = loud.dtype.to_uppercase();
            loud.gpu_arch = loud.gpu_arch.to_uppercase();
            prop_assert_eq!(id(loud), id(identity.clone()));
            let same = by_hand(&identity) == by_hand(&other);
            prop_assert_eq!(id(identity) == id(other), same);
        }
    }
}
