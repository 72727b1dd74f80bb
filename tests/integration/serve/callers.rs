//! Who may use what, and how much.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64URL_NOPAD;
use hyper::Method;
use serde_json::{Value, json};
use warmd::identity::{PrivateKey, UnixTime};
use warmd::proxy::auth::AuthConfig;

use super::wallet::{AUDIENCE, WALLETS, session};
use crate::harness::engine::own_proc;
use crate::harness::http::Connection;
use crate::harness::served::{Adapter, Fleet, Served, paths, until, waiting};

/// What `warmd keys api` prints.
fn api_key(file: &Path, tenant: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmd"));
    command.args(["keys", "api", "--id", tenant, "--tenant", tenant]).arg(file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn auth(keys: &Path, more: &str) -> AuthConfig {
    let wallet = format!("[wallet]\naudiences = [\"{AUDIENCE}\"]\nstrangers = true");
    toml::from_str(&format!("{more}\n{wallet}\n[keys]\nfile = {keys:?}")).unwrap()
}

/// Names in `/v1/models`.
async fn listed(served: &Served, bearer: &str) -> Vec<String> {
    let models: Value = served.get(Some(bearer), "/v1/models").await.json();
    models["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_adapter_with_an_owner_is_for_its_wallet_alone() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("mine", 1).owned_by(WALLETS[0].1)).await;
    fleet.publish(Adapter::new("everybodys", 2)).await;
    let keys = fleet.cluster.path("keys.toml");
    let (key, owner, stranger) = (api_key(&keys, "team"), session(WALLETS[0]), session(WALLETS[1]));
    let mut config = fleet.config();
    config.auth = auth(&keys, "");
    let served = fleet.serve(config.clone(), "").await;
    let ask =
        async |served: &Served, bearer: &str, model: &str| served.complete_as(Some(bearer), &waiting(model)).await;
    served.ready().await;
    assert_eq!(ask(&served, &stranger, "mine").await.status, 403, "also while nobody has asked for it before");
    let here = fleet.agent.as_ref().unwrap().client.status().await.unwrap();
    assert_eq!((here.artifacts, here.transfers.len()), (0, 0), "a stranger's request fetches nothing");
    let weights = ask(&served, &owner, "mine").await.weights();
    for other in [&stranger, &key] {
        assert_eq!(ask(&served, other, "mine").await.status, 403);
        ask(&served, other, "everybodys").await.weights();
        assert_eq!(listed(&served, other).await, ["base", "everybodys"]);
    }
    assert_eq!(listed(&served, &owner).await, ["base", "everybodys", "mine"]);
    served.shutdown().await;

    fleet.publish(Adapter::new("cold", 3).owned_by(WALLETS[0].1)).await;
    config.auth = auth(&keys, "others_adapters = \"not-found\"");
    let served = fleet.serve(config, "").await;
    served.ready().await;
    assert_eq!(ask(&served, &owner, "mine").await.weights(), weights);
    // Nobody has asked for it before, and this one does not wait.
    let cold = served.complete_as(Some(&stranger), &json!({"model": "cold", "prompt": "p"})).await;
    assert_eq!(cold.refusal(), (404, "model_not_found".to_owned()));
    assert_eq!(listed(&served, &stranger).await, ["base", "everybodys"]);
    for other in [&stranger, &key] {
        let (hidden, missing) = (ask(&served, other, "mine").await, ask(&served, other, "none").await);
        assert_eq!((hidden.status, missing.status), (404, 404));
        assert_eq!(hidden.text.replace("mine", "none"), missing.text, "the two answers tell nothing apart");
    }
    served.shutdown().await;
}

/// A signed token of RFC 7519.
fn jwt(key: &PrivateKey, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(&json!({"alg": "EdDSA", "kid": "k1"})), part(claims));
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes())))
}

#[tokio::test]
async fn a_token_of_the_issuer_lets_its_tenant_in_and_no_other_token_does() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("everybodys", 1)).await;
    fleet.publish(Adapter::new("mine", 2).owned_by(WALLETS[0].1)).await;
    let (issuer, stranger) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let x = BASE64URL_NOPAD.encode(issuer.public().as_bytes());
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x}]});
    let path = fleet.cluster.path("jwks.json");
    std::fs::write(&path, keys.to_string()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut config = fleet.config();
    let scopes = "scopes = [\"infer\", \"adapter:mi*\"]";
    config.auth =
        toml::from_str(&format!("[jwt]\nissuer = \"idp\"\naudiences = [\"llm\"]\nkeys = {path:?}\n{scopes}")).unwrap();
    let served = fleet.serve(config, "").await;
    served.ready().await;
    let now = UnixTime::now().seconds();
    let claims = json!({"iss": "idp", "aud": "llm", "sub": "team", "exp": now + 600});
    let with = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        claims
    };
    let token = jwt(&issuer, &claims);
    assert_eq!(served.complete_as(Some(&token), &waiting("base")).await.weights(), "base");
    served.complete_as(Some(&token), &waiting("everybodys")).await.weights();
    assert_eq!(served.complete_as(Some(&token), &waiting("mine")).await.status, 403, "the token asks for no more");
    let wide = jwt(&issuer, &with("scope", json!("infer adapter:mine openid")));
    served.complete_as(Some(&wide), &waiting("mine")).await.weights();
    let refused = [
        jwt(&stranger, &claims),
        jwt(&issuer, &with("aud", json!("other"))),
        jwt(&issuer, &with("iss", json!("other"))),
        jwt(&issuer, &with("exp", json!(now - 600))),
        token.replace("eyJ", "eyK"),
    ];
    for token in refused {
        let told = served.complete_as(Some(&token), &waiting("base")).await;
        assert_eq!(told.refusal(), (401, "invalid_api_key".to_owned()), "{token}");
    }
    served.shutdown().await;
}

#[tokio::test]
async fn only_who_has_a_key_comes_in_and_the_engine_is_behind_the_proxy_alone() {
    use std::os::unix::fs::MetadataExt;
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let keys = fleet.cluster.path("keys.toml");
    let key = api_key(&keys, "team");
    let mut config = fleet.config();
    config.auth = toml::from_str(&format!("[keys]\nfile = {keys:?}")).unwrap();
    let served = fleet.serve(config.clone(), "").await;
    served.ready().await;
    assert_eq!(served.complete_as(Some(&key), &waiting("base")).await.weights(), "base");
    for wrong in [None, Some("wrong"), Some(&key[1..])] {
        let refused = served.complete_as(wrong, &waiting("base")).await;
        assert_eq!(refused.refusal(), (401, "invalid_api_key".to_owned()), "{wrong:?}");
        assert_eq!(served.get(wrong, "/v1/models").await.status, 401);
    }
    let mode = served.state.metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "others do not reach the engine's socket");
    let mode = served.state.join("admin.sock").metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let engine_key = served.engine_key().await;
    for (name, _) in std::env::vars() {
        assert_ne!(name, "VLLM_API_KEY");
    }
    for process in std::fs::read_dir("/proc").unwrap() {
        let arguments = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(&engine_key));
    }
    let mut past = Connection::unix(&served.state.join("engine.sock"), Some(&key)).await.unwrap();
    assert_eq!(
        past.ask(Method::GET, "/v1/models", "").await.unwrap().status,
        401,
        "a client's key is none of the engine's"
    );
    // A key that is added counts after a reload.
    let second = api_key(&keys, "second");
    assert_eq!(served.get(Some(&second), "/v1/models").await.status, 401);
    assert_eq!(served.admin(Method::POST, "/admin/v1/auth/reload", "").await.status, 200);
    assert_eq!(served.get(Some(&second), "/v1/models").await.status, 200);
    served.shutdown().await;
    let served = fleet.serve(config, "").await;
    served.ready().await;
    assert_ne!(served.engine_key().await, engine_key, "each launch has a key of its own");
    served.shutdown().await;
}

#[tokio::test]
async fn ten_thousand_unknown_names_of_one_tenant_are_slowed_and_another_tenant_goes_on() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    fleet.publish(Adapter::new("sql", 1)).await;
    let keys = fleet.cluster.path("keys.toml");
    let (greedy, modest) = (api_key(&keys, "greedy"), api_key(&keys, "modest"));
    let mut config = fleet.config();
    config.auth = toml::from_str(&format!("[keys]\nfile = {keys:?}")).unwrap();
    let served = fleet.serve(config, "").await;
    served.ready().await;
    let weights = served.complete_as(Some(&modest), &waiting("sql")).await.weights();
    let before = paths(&served.state);
    let mut connection = served.connect(Some(&greedy)).await;
    let mut statuses = std::collections::BTreeMap::new();
    for n in 0..10_000 {
        let body = json!({"model": format!("name-{n}"), "prompt": "p"}).to_string();
        let answer = connection.ask(Method::POST, "/v1/completions", &body).await.unwrap();
        assert!(answer.status != 429 || answer.retry_after().is_some(), "{answer:?}");
        *statuses.entry(answer.status).or_insert(0) += 1;
        if n % 1000 == 0 {
            assert_eq!(served.complete_as(Some(&modest), &waiting("sql")).await.weights(), weights);
        }
    }
    assert!(statuses.keys().all(|status| [404, 429].contains(status)), "{statuses:?}");
    assert!(statuses[&429] > 9_000, "{statuses:?}");
    let health = served.health().await;
    assert_eq!((&health["adapters"]["known"], &health["requests"]["waiting"]), (&json!(1), &json!(0)));
    until("something is left of them on the disk", async || paths(&served.state).is_subset(&before)).await;
    served.shutdown().await;
}

#[tokio::test]
async fn a_place_that_is_taken_is_named_and_nothing_is_started() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let mut clients = fleet.config();
    clients.listen = Some(addr);
    let mut metrics = fleet.config();
    metrics.metrics.listen = Some(addr);
    let mut admin = fleet.config();
    let file = fleet.cluster.path("file");
    std::fs::write(&file, "").unwrap();
    admin.admin = Some(file.clone());
    for (config, place) in
        [(clients, addr.to_string()), (metrics, addr.to_string()), (admin, file.display().to_string())]
    {
        let error = fleet.refused(config).await;
        assert!(error.contains(&place), "{error}");
    }
    assert!(!fleet.cluster.path("serve/engine.json").exists());
}

#[tokio::test]
async fn a_tenant_that_has_all_its_adapters_here_is_told_so_and_others_go_on() {
    if !own_proc() {
        return;
    }
    let fleet = Fleet::start().await;
    for (fill, alias) in ["one", "two", "three"].into_iter().enumerate() {
        fleet.publish(Adapter::new(alias, fill as u8)).await;
    }
    let keys = fleet.cluster.path("keys.toml");
    let (greedy, modest) = (api_key(&keys, "greedy"), api_key(&keys, "modest"));
    let mut config = fleet.config();
    config.auth = toml::from_str(&format!("[keys]\nfile = {keys:?}")).unwrap();
    config.limits.default.max_adapters = 1;
    let served = fleet.serve(config, "").await;
    served.ready().await;
    served.complete_as(Some(&greedy), &waiting("one")).await.weights();
    for name in ["two", "three", "nobodys"] {
        let told = served.complete_as(Some(&greedy), &waiting(name)).await;
        assert_eq!(told.refusal(), (429, "rate_limit_exceeded".to_owned()));
        assert!(told.retry_after().is_some() && told.text.contains("adapters"), "{told:?}");
    }
    served.complete_as(Some(&modest), &waiting("two")).await.weights();
    served.complete_as(Some(&greedy), &waiting("two")).await.weights();
    assert_eq!(served.engine("/fake").await["loads"].as_array().unwrap().len(), 2);
    served.shutdown().await;
}
