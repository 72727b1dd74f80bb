use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A program that is called as a Python interpreter would be.
struct Fake {
    dir: tempfile::TempDir,
}

const ANSWER: &str = r#"{"facts": {"torch": {"value": " 2.13.0 "}, "gpu_name": {"absent": "no GPU"}}, "watch": {"files": ["/none"], "sites": [], "trees": []}}"#;

impl Fake {
    fn saying(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("python3");
        // Written and closed by another process: a file that this one had open for writing may not be run yet.
        let text = format!("#!/bin/sh\necho ran >>'{}/runs'\n{script}\n", dir.path().display());
        let mut tee = std::process::Command::new("/bin/sh");
        tee.args(["-c", "printf %s \"$1\" >\"$2\"", "sh", &text]).arg(&path);
        assert!(tee.status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn answering(line: &str) -> Self {
        Self::saying(&format!("cat <<'END'\n{line}\nEND"))
    }

    fn probe(&self) -> Probe {
        let path = std::env::var("PATH").unwrap();
        Probe {
            interpreter: Interpreter { python: self.dir.path().join("python3"), options: vec![], first: None },
            environment: [("PATH".to_owned(), path)].into_iter().collect(),
            deadline: Duration::from_secs(30),
            cache: None,
        }
    }

    fn keeping(&self) -> Probe {
        Probe { cache: Some(self.dir.path().join("kept")), ..self.probe() }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.dir.path().join("runs")).map_or(0, |text| text.lines().count())
    }
}

/// All that is probed, so that nothing fails.
fn whole_answer() -> String {
    let mut facts = Facts::default();
    for fact in Fact::ALL.iter().filter(|fact| !NOT_PROBED.contains(fact)) {
        facts.set(*fact, Known::Value(format!("{fact} value")));
    }
    let watch = Watch { files: vec!["/etc/hostname.none".into()], ..Watch::default() };
    serde_json::json!({ "facts": facts, "watch": watch }).to_string()
}

#[tokio::test]
async fn the_last_line_is_the_answer_and_what_it_lacks_has_failed() {
    let fake = Fake::answering(&format!("a start-up file says hello\n{ANSWER}"));
    let facts = fake.probe().run().await.unwrap().facts;
    assert_eq!(facts.value(Fact::Torch), Some("2.13.0"));
    assert_eq!(facts.get(Fact::GpuName), Some(&Known::Absent("no GPU".to_owned())));
    assert!(matches!(facts.get(Fact::Vllm), Some(Known::Failed(why)) if why.contains("said nothing")));
    assert_eq!(facts.get(Fact::Model), None);
}

#[tokio::test]
async fn the_interpreter_gets_the_program_its_options_and_the_engines_environment() {
    let script = "[ \"$1\" = -u ] && [ \"$2\" = -c ] && [ \"$4\" = /first ] && [ -z \"$HOME\" ] || exit 9\n\
                  printf '{\"facts\": {\"torch\": {\"value\": \"%s\"}}, \"watch\": {\"files\": [], \"sites\": [], \"trees\": []}}' \"$WORD\"";
    let fake = Fake::saying(script);
    let mut probe = fake.probe();
    probe.interpreter.options = vec!["-u".to_owned()];
    probe.interpreter.first = Some("/first".into());
    probe.environment.set("WORD", "engine");
    assert_eq!(probe.run().await.unwrap().facts.value(Fact::Torch), Some("engine"));
}

#[tokio::test]
async fn an_interpreter_that_fails_is_told_with_its_last_words() {
    let fake = Fake::saying("echo 'SyntaxError: invalid syntax' >&2; exit 1");
    let error = fake.probe().run().await.unwrap_err().to_string();
    assert!(error.contains("SyntaxError") && error.contains("python3") && error.contains("--python"), "{error}");
}

#[tokio::test]
async fn an_interpreter_that_is_not_there_is_told() {
    let mut probe = Fake::answering("").probe();
    probe.interpreter.python = "/no/python3".into();
    let error = probe.run().await.unwrap_err().to_string();
    assert!(error.contains("/no/python3") && error.contains("--python"), "{error}");
}

#[tokio::test]
async fn a_probe_that_hangs_is_ended_and_the_fact_is_named() {
    let fake = Fake::saying("echo 'reading gpu_name' >&2; sleep 1000");
    let probe = Probe { deadline: Duration::from_secs(10), ..fake.probe() };
    let error = probe.run().await.unwrap_err().to_string();
    assert!(error.contains("reading gpu_name") && error.contains("10s"), "{error}");
}

#[tokio::test]
async fn garbage_is_told_without_its_control_characters() {
    for line in ["hello\x1b[31m", "", "{\"facts\": {}}", "[]", &ANSWER.replace("torch", "colour")] {
        let error = Fake::answering(line).probe().run().await.unwrap_err();
        assert!(matches!(error, ProbeError::Garbage { .. }), "{line}: {error}");
        assert!(error.to_string().contains("--python") && !error.to_string().contains('\x1b'), "{error}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let error = Fake::saying("while :; do echo 0123456789012345678901234567890123456789; done").probe().run().await;
    assert!(error.unwrap_err().to_string().contains("bytes"));
}

#[tokio::test]
async fn a_value_with_control_characters_is_refused_by_the_facts_name() {
    let fake = Fake::answering(&ANSWER.replace(" 2.13.0 ", r"2\u001b[31m"));
    let facts = fake.probe().run().await.unwrap().facts;
    assert!(matches!(facts.get(Fact::Torch), Some(Known::Failed(why)) if why.contains("control characters")));
    assert!(facts.failed().any(|fact| fact == Fact::Torch));
}

#[tokio::test]
async fn an_answer_is_kept_until_something_that_counts_changes() {
    let fake = Fake::answering(&whole_answer());
    let probe = fake.keeping();
    assert!(!probe.run().await.unwrap().kept);
    let again = probe.run().await.unwrap();
    assert!(again.kept);
    assert_eq!((again.facts.value(Fact::Torch), fake.runs()), (Some("torch value"), 1));

    let mut other = fake.keeping();
    other.environment.set("HOSTNAME", "pod-1");
    assert!(other.run().await.unwrap().kept);
    other.environment.set("CUDA_VISIBLE_DEVICES", "1");
    assert!(!other.run().await.unwrap().kept);
    assert_eq!(fake.runs(), 2);
}

#[tokio::test]
async fn an_answer_with_a_failure_in_it_is_not_kept() {
    let fake = Fake::answering(ANSWER);
    for runs in 1..3 {
        assert!(!fake.keeping().run().await.unwrap().kept);
        assert_eq!(fake.runs(), runs);
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_kept_is_an_answer() {
    let fake = Fake::answering(&whole_answer());
    fs::write(fake.dir.path().join("kept"), "a file").unwrap();
    assert!(!fake.keeping().run().await.unwrap().kept);
}

#[tokio::test]
async fn the_environment_is_read_anew_even_if_the_answer_is_kept() {
    let fake = Fake::answering(&whole_answer());
    let mut probe = fake.keeping();
    let facts = probe.run().await.unwrap().facts;
    assert!(matches!(facts.get(Fact::TritonEnv), Some(Known::Absent(_))));
    assert_eq!(facts.value(Fact::Image), Some("image value"));
    probe.environment.set("DISABLE_PTXAS_OPT", "1");
    probe.environment.set("TRITON_F32_DEFAULT", "ieee");
    probe.environment.set("WARMD_IMAGE_DIGEST", "sha256:1");
    let kept = probe.run().await.unwrap();
    assert!(kept.kept);
    assert_eq!(kept.facts.value(Fact::TritonEnv), Some("DISABLE_PTXAS_OPT=1 TRITON_F32_DEFAULT=ieee"));
    assert_eq!(kept.facts.value(Fact::Image), Some("sha256:1"));
}

#[test]
fn the_program_reads_no_variable_that_is_not_relevant_and_every_fact_that_is_probed() {
    for line in PROGRAM.lines() {
        for part in line.split("ENV.get(\"").skip(1) {
            let name = part.split('"').next().unwrap();
            // The name of the tool is put in.
            let name = name.replace("%s", "PTXAS");
            assert!(is_relevant(&name), "{name}");
        }
    }
    for fact in Fact::ALL {
        let read = PROGRAM.contains(&format!("    \"{fact}\": "));
        assert_eq!(read, !NOT_PROBED.contains(fact), "{fact}");
    }
}

mod python;
