use std::collections::BTreeMap;

use super::*;
use crate::artifact::{RelPath, SourceIdentity};
use crate::caches::CacheFamily;
use crate::serve::outlook::Outlook;
use crate::serve::warming::Entries;

fn prospect(name: &str) -> Prospect {
    let family = CacheFamily::by_name(name).unwrap();
    let identity = SourceIdentity::new(name.parse().unwrap(), BTreeMap::new()).unwrap();
    Prospect { family, root: format!("/caches/{name}").into(), identity }
}

fn plan(prospects: Vec<Prospect>) -> Plan {
    Plan {
        span: tracing::Span::none(),
        site: Site { outlook: Outlook { prospects, ..Outlook::default() }, ..Site::default() },
        warmed: Vec::new(),
        client: None,
        history: History::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_cannot_be_looked_through_costs_its_family_and_not_the_start() {
    let mut plan = plan(["modelinfos", "triton", "vllm-aot"].map(prospect).to_vec());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = heard.clone();
    let say: Say = Arc::new(move |line: &str| said.lock().unwrap().push(line.to_owned()));
    let seen = Entries::from([(String::new(), [RelPath::new("key").unwrap()].into())]);
    let look = async |prospect: &Prospect| match prospect.family.name {
        "modelinfos" => std::future::pending().await,
        "triton" => Err("it is damaged".to_owned()),
        _ => Ok(Looked { entries: seen.clone(), received: Entries::new() }),
    };
    let begun = tokio::time::Instant::now();
    plan.look_at_roots(Duration::from_secs(20), look, &say).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(20));
    let left: Vec<_> = plan.warmed.iter().map(|one| (one.prospect.family.name, one.before.clone())).collect();
    assert_eq!(left, [("vllm-aot", seen)]);
    let mut heard = heard.lock().unwrap().clone();
    heard.sort();
    let rest = "nothing of it is proven or published";
    assert_eq!(
        heard,
        [
            format!(
                "modelinfos: /caches/modelinfos was not looked through within 20s: remove what no engine needs; {rest}"
            ),
            format!("triton: it is damaged; {rest}"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_leaves_a_moment_for_the_look() {
    let mut plan = plan(vec![prospect("triton")]);
    let say: Say = Arc::new(|_: &str| ());
    let look = async |_: &Prospect| {
        tokio::time::sleep(LEAST_LOOK / 2).await;
        Ok(Looked::default())
    };
    plan.look_at_roots(Duration::ZERO, look, &say).await;
    assert_eq!(plan.warmed.len(), 1);
}
