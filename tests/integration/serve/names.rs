//! Names that are none.

use std::collections::BTreeSet;

use hyper::Method;
use serde_json::json;

use crate::harness::engine::own_proc;
use crate::harness::served::{Adapter, Fleet, paths, registered, until};

#[tokio::test]
async fn a_name_that_is_none_is_refused_and_nothing_is_made_of_it() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let served = fleet.serve(fleet.config(), "").await;
    served.ready().await;
    served.complete("sql").await.weights();
    let own = registered(&served.engine("/v1/models").await)[0].0.clone();
    // What the cluster's other roles write in their own directories is not of a name.
    let roles = ["trainer", "pod", "metadata"].map(|name| fleet.cluster.path(name));
    let made = || {
        let all = paths(fleet.cluster.dir.path()).into_iter();
        all.filter(|path| !roles.iter().any(|role| path.starts_with(role))).collect::<BTreeSet<_>>()
    };
    let (before, loads) = (made(), served.engine("/fake").await["loads"].clone());
    let (long, digest) = ("n".repeat(10 * 1024), format!("sql@{}", "0".repeat(32)));
    let names = [
        "a/b",
        "/etc/passwd",
        "../sql",
        "..",
        ".",
        "a..b",
        "",
        " sql",
        "sql ",
        "sql\n",
        "s\u{0}ql",
        "s\u{7f}",
        "sql\u{202e}",
        "s\\q",
        "%2e%2e",
        "~",
        "-sql",
        "sql@",
        &digest,
        &own,
        &long,
    ];
    for name in names {
        for more in [json!(false), json!(true)] {
            let body = json!({"model": name, "prompt": "p", "wait_for_model": more});
            let refused = served.complete_as(None, &body).await;
            assert!([400, 404].contains(&refused.status), "{name:?}: {refused:?}");
            assert!(refused.json()["error"]["message"].is_string() && refused.text.len() < 16 * 1024, "{name:?}");
        }
    }
    for name in [json!(null), json!(1), json!(["sql"]), json!({"a": 1})] {
        let refused = served.complete_as(None, &json!({"model": name, "prompt": "p"})).await;
        assert_eq!(refused.status, 400, "{name}");
    }
    for name in ["..", "a..b", "%2e%2e", "..%2fsql", "sql@1", &long] {
        for order in ["load", "unload", "pin", "pause"] {
            let path = format!("/admin/v1/adapters/{name}/{order}");
            let refused = served.admin(Method::POST, &path, "").await;
            assert!([400, 404].contains(&refused.status), "{path}: {refused:?}");
        }
    }
    until("a path is made of a name", async || made().is_subset(&before)).await;
    assert_eq!(served.engine("/fake").await["loads"], loads);
    assert_eq!(served.health().await["adapters"]["known"], 1);
    served.shutdown().await;
}
