//! `warmd serve` with a real vLLM: adapters of another node, on demand.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::vllm::{Serving, Vllm};

const LORA: [&str; 3] = ["--served-model-name", "base", "--enable-lora"];

/// Eight tokens that depend on the weights, and on nothing else but what is computed beside them.
async fn complete(serving: &Serving, model: &str) -> Result<String, (u16, String)> {
    let body =
        json!({"model": model, "prompt": "hello world", "max_tokens": 8, "temperature": 0, "wait_for_model": true});
    match serving.post("/v1/completions", &body).await {
        (200, body) => {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["model"], model);
            Ok(body["choices"][0]["text"].as_str().unwrap().to_owned())
        }
        failed => Err(failed),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_of_another_node_are_served_on_demand_and_survive_the_engine() {
    let Some(vllm) = Vllm::find().await else { return };
    let cluster = Cluster::start().await;
    let (a, b) = (cluster.agent("a").await, cluster.agent("b").await);
    for (directory, alias) in
        [("lora-r8", "r8"), ("lora-r16", "r16"), ("lora-r64", "r64"), ("dora-r16", "dora"), ("lora-badshape", "shape")]
    {
        vllm.publish(&cluster, "a", &vllm.adapter(directory), alias).await;
    }
    let serving = vllm.serve(&cluster, "b", "pod", &LORA).await;

    // Three at once, from a node that this one has never asked before; each has its own weights.
    let (r8, r16, r64) = tokio::join!(complete(&serving, "r8"), complete(&serving, "r16"), complete(&serving, "r64"));
    let mut texts = vec![complete(&serving, "base").await.unwrap(), r8.unwrap(), r16.unwrap(), r64.unwrap()];
    let answers = texts.clone();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), 4, "{answers:?}");

    // Refused before the engine hears of them.
    for (alias, reason) in [("dora", "DoRA"), ("shape", "another model")] {
        let (status, body) = complete(&serving, alias).await.unwrap_err();
        assert!(status == 422 && body.contains(reason), "{status} {body}");
        assert!(!serving.log().contains(&format!("LoRA adapter '{alias}@")), "{}", serving.log());
    }
    streams(&serving).await;
    openai(&vllm, &serving).await;
    let [old, new, other] = texts_of(&serving, ["r8", "r16", "r64"]).await;
    flips(&vllm, &cluster, &serving, &old, &new).await;
    survives(&serving, &new, &other).await;
    assert_eq!(serving.stop().await, Some(0));
    a.stop().await;
    b.stop().await;
}

async fn streams(serving: &Serving) {
    let body = json!({"model": "r16", "prompt": "hello", "max_tokens": 20, "stream": true, "ignore_eos": true});
    let (status, text) = serving.post("/v1/completions", &body).await;
    let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert!(status == 200 && events.len() > 20 && events.last() == Some(&"[DONE]"), "{text}");
    for event in &events[..events.len() - 1] {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["model"], "r16");
    }
}

/// The client that most people have.
async fn openai(vllm: &Vllm, serving: &Serving) {
    let url = format!("http://{}/v1", serving.addr);
    let output = vllm.script("openai_client.py", &[&url, "base", "r8"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What each adapter answers. More than one text: a kernel rounds otherwise for another number of requests in a batch.
async fn texts_of(serving: &Serving, aliases: [&str; 3]) -> [BTreeSet<String>; 3] {
    let mut texts = [const { BTreeSet::new() }; 3];
    for at in 0..3 {
        let (one, next) = (aliases[at], aliases[(at + 1) % 3]);
        texts[at].insert(complete(serving, one).await.unwrap());
        for _ in 0..3 {
            let (first, second) = tokio::join!(complete(serving, one), complete(serving, one));
            texts[at].extend([first.unwrap(), second.unwrap()]);
            let (first, second) = tokio::join!(complete(serving, one), complete(serving, next));
            texts[at].insert(first.unwrap());
            texts[(at + 1) % 3].insert(second.unwrap());
        }
    }
    let [one, two, three] = &texts;
    eprintln!("texts of {aliases:?}: {}, {}, {}", one.len(), two.len(), three.len());
    assert!(one.is_disjoint(two) && two.is_disjoint(three) && three.is_disjoint(one), "{texts:?}");
    texts
}

/// Another version under load: each answer is of the one or of the other, and from the flip on of the new one.
async fn flips(vllm: &Vllm, cluster: &Cluster, serving: &Serving, old: &BTreeSet<String>, new: &BTreeSet<String>) {
    vllm.publish(cluster, "a", &vllm.adapter("lora-r16"), "r8").await;
    let (mut seen_old, mut seen_new) = (0, 0);
    while seen_new < 20 {
        let (one, two) = tokio::join!(complete(serving, "r8"), complete(serving, "r8"));
        for text in [one.unwrap(), two.unwrap()] {
            if new.contains(&text) {
                seen_new += 1;
            } else {
                assert!(old.contains(&text) && seen_new == 0, "mixed, or old again: {text} of {old:?} and {new:?}");
                seen_old += 1;
            }
        }
    }
    eprintln!("flip: {seen_old} answers of the old version, then {seen_new} of the new one");
}

/// The engine's core is killed in the middle of an answer.
async fn survives(serving: &Serving, new: &BTreeSet<String>, other: &BTreeSet<String>) {
    let leader = serving.admin("/admin/v1/engine").await["leader"].as_i64().unwrap();
    let before = family_of(leader);
    let body = json!({"model": "r16", "prompt": "hello", "max_tokens": 1500, "stream": true, "ignore_eos": true});
    let cut_off = serving.post("/v1/completions", &body);
    let kill = async {
        serving.until(|serving| async { serving.admin("/admin/v1/health").await["requests"]["in_flight"] == 1 }).await;
        let core = before.iter().find(|(_, name)| name.contains("EngineCor")).expect("a core").0;
        let core = rustix::process::Pid::from_raw(core).unwrap();
        rustix::process::kill_process(core, rustix::process::Signal::KILL).unwrap();
    };
    let ((_, text), ()) = tokio::join!(cut_off, kill);
    assert!(text.contains("\"error\"") || !text.contains("[DONE]"), "an end that looks whole: {text}");
    serving.until(|serving| async { serving.admin("/admin/v1/engine").await["epoch"] == 2 }).await;
    for (pid, name) in &before {
        let still = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        assert_ne!(still.trim(), name, "{pid} has survived");
    }
    serving.until(|serving| async { serving.get("/health").await.0 == 200 }).await;
    for (alias, texts) in [("r64", other), ("r8", new)] {
        let text = complete(serving, alias).await.unwrap();
        assert!(texts.contains(&text), "{alias}: {text} of {texts:?}");
    }
}

/// Process ids and names of the leader's session.
fn family_of(leader: i64) -> Vec<(i32, String)> {
    let mut family = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Ok(pid) = entry.unwrap().file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3)?.parse::<i64>().ok());
        if session == Some(leader) {
            family.push((
                pid,
                std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned(),
            ));
        }
    }
    family
}
