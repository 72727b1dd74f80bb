use std::os::unix::fs::PermissionsExt;

use super::signature::tests::{DEV_KEYS, sign};
use super::*;

/// FIPS 180-2, appendix B.1: of "abc".
const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn now() -> UnixTime {
    UnixTime::from_seconds(1_800_000_000)
}

struct Fixture {
    dir: tempfile::TempDir,
    authenticator: Authenticator,
}

fn key_file(id: &str) -> String {
    format!("[[key]]\nid = \"{id}\"\nhash = \"sha256:{SHA256_OF_ABC}\"\ntenant = \"team\"\n")
}

fn open(dir: &Path, toml: &str) -> Result<Authenticator, AuthError> {
    let toml = toml.replace("$DIR", dir.to_str().unwrap());
    Authenticator::open(toml::from_str(&toml).unwrap(), dir)
}

/// Whatever the umask is.
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// With `keys.toml` in `$DIR`, whose one secret is "abc".
fn fixture(toml: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("keys.toml"), &key_file("one"));
    let authenticator = open(dir.path(), toml).unwrap();
    Fixture { dir, authenticator }
}

const KEYS: &str = "[keys]\nfile = \"$DIR/keys.toml\"\n";

fn wallet(more: &str) -> String {
    let address = DEV_KEYS[0].1;
    format!("[wallet]\naudiences = [\"llm.example.com\"]\naddresses = [{{ address = \"{address}\" }}]\n{more}\n")
}

impl Fixture {
    fn ask(&self, header: &str) -> Result<Caller, Denied> {
        self.authenticator.authenticate(Some(header.as_bytes()), now())
    }

    fn reload(&self) -> Result<(), AuthError> {
        self.authenticator.take(self.authenticator.read()?);
        Ok(())
    }
}

#[test]
fn without_any_method_nothing_starts_and_anonymous_is_said_explicitly() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open(dir.path(), ""), Err(AuthError::NoMethod)));
    let anonymous = fixture("anonymous = { tenant = \"anyone\" }").authenticator;
    for header in [None, Some(b"Bearer EMPTY".as_slice())] {
        let caller = anonymous.authenticate(header, now()).unwrap();
        assert_eq!((caller.tenant().as_str(), caller.method()), ("anyone", Method::Anonymous));
    }
    let admin = open(dir.path(), "anonymous = { tenant = \"anyone\", scopes = [\"admin\"] }");
    assert!(matches!(admin, Err(AuthError::Config { key: "anonymous.scopes", .. })));
}

#[test]
fn wrong_credentials_are_denied_even_where_none_would_do() {
    let fixture = fixture(&format!("anonymous = {{ tenant = \"anyone\" }}\n{KEYS}"));
    assert_eq!(fixture.authenticator.authenticate(None, now()).unwrap().tenant().as_str(), "anyone");
    assert_eq!(fixture.ask("Bearer abc").unwrap().tenant().as_str(), "team");
    assert_eq!(fixture.ask("Bearer wrong").unwrap_err(), Denied::Unknown);
}

#[test]
fn headers_that_are_not_bearer_tokens_are_denied() {
    let fixture = fixture(KEYS);
    assert_eq!(fixture.authenticator.authenticate(None, now()).unwrap_err(), Denied::Missing);
    for header in ["", "Bearer", "Bearer ", "abc", "Basic abc", "Bearer abc def", "Bearer a\u{7f}", "Bearer \u{e4}bc"] {
        assert_eq!(fixture.ask(header).unwrap_err(), Denied::Scheme, "{header}");
    }
    assert_eq!(fixture.authenticator.authenticate(Some(b"Bearer \xff"), now()).unwrap_err(), Denied::Scheme);
    assert_eq!(fixture.ask(&format!("Bearer {}", "a".repeat(MAX_HEADER))).unwrap_err(), Denied::TooLong);
    assert!(fixture.ask("bearer abc").is_ok() && fixture.ask("BEARER  abc").is_ok());
}

#[test]
fn the_form_of_a_token_decides_the_method_and_what_is_off_is_denied() {
    let only_keys = fixture(KEYS);
    assert_eq!(only_keys.ask("Bearer eip191.a.b").unwrap_err(), Denied::MethodOff);
    assert_eq!(only_keys.ask("Bearer eyJ.a.b").unwrap_err(), Denied::MethodOff);
    let only_wallets = fixture(&wallet(""));
    assert_eq!(only_wallets.ask("Bearer abc").unwrap_err(), Denied::MethodOff);
    assert_eq!(only_wallets.ask("Bearer eip191.a.b").unwrap_err(), Denied::Malformed);
}

#[test]
fn the_static_signature_is_no_credential_without_its_flag() {
    let text = "0g-serving-inference-auth";
    let signature = sign(DEV_KEYS[0].0, text);
    let off = fixture(&format!("{}{KEYS}", wallet("")));
    assert_eq!(off.ask(&format!("Bearer {signature}")).unwrap_err(), Denied::Unknown);
    let on = fixture(&format!("{}{KEYS}", wallet(&format!("insecure_static_text = \"{text}\""))));
    // 0G's clients leave the prefix out or not.
    for form in [signature.as_str(), &signature[2..]] {
        assert_eq!(on.ask(&format!("Bearer {form}")).unwrap().method(), Method::WalletStatic);
    }
    assert!(on.ask("Bearer abc").is_ok());
}

#[test]
fn a_signed_text_opens_the_door_as_a_bearer_token() {
    let fixture = fixture(&wallet(""));
    let text = SignIn {
        domain: "llm.example.com".to_owned(),
        address: DEV_KEYS[0].1.parse().unwrap(),
        statement: Some("Use our models.".to_owned()),
        chain: 1,
        nonce: "4f1c9a7be02d6358".to_owned(),
        issued: now(),
        expires: now().after(std::time::Duration::from_secs(600)),
        not_before: None,
        scopes: vec![Scope::Infer],
        purpose: Use::Session { token: TokenId::EPHEMERAL, generation: 0 },
    }
    .to_string();
    let encoded = data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
    let header = format!("Bearer eip191.{encoded}.{}", sign(DEV_KEYS[0].0, &text));
    let caller = fixture.ask(&header).unwrap();
    assert_eq!(caller.tenant().as_str(), DEV_KEYS[0].1);
    fixture.authenticator.sessions().unwrap().revoke_all(caller.address().unwrap()).unwrap();
    assert_eq!(fixture.ask(&header).unwrap_err(), Denied::Revoked);
}

#[test]
fn a_reload_swaps_all_keys_or_none() {
    let fixture = fixture(KEYS);
    let path = fixture.dir.path().join("keys.toml");
    write(&path, &key_file("two"));
    fixture.reload().unwrap();
    assert_eq!(fixture.ask("Bearer abc").unwrap().key(), "two");
    write(&path, &(key_file("three") + "[[key]]\nid = \"broken\"\n"));
    let error = fixture.reload().unwrap_err();
    assert!(matches!(&error, AuthError::ApiKeys { .. }) && error.to_string().contains("keys.toml"), "{error}");
    assert_eq!(fixture.ask("Bearer abc").unwrap().key(), "two");
    write(&path, "");
    fixture.reload().unwrap();
    assert_eq!(fixture.ask("Bearer abc").unwrap_err(), Denied::Unknown);
}

#[tokio::test]
async fn files_of_keys_that_are_read_slowly_hold_up_nobody() {
    let Fixture { dir, authenticator } = fixture(KEYS);
    let (path, authenticator) = (dir.path().join("keys.toml"), Arc::new(authenticator));
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let (say, told) = std::sync::mpsc::channel();
    let writing = std::thread::spawn(move || {
        let others_go_on = told.recv_timeout(std::time::Duration::from_secs(20)).is_ok();
        std::fs::write(&path, key_file("slow")).unwrap();
        others_go_on
    });
    let (keys, ()) = tokio::join!(authenticator.read_again(), async { say.send(()).unwrap_or_default() });
    authenticator.take(keys.unwrap());
    assert!(writing.join().unwrap());
    assert_eq!(authenticator.authenticate(Some(b"Bearer abc"), now()).unwrap().key(), "slow");
}

#[test]
fn a_key_file_that_others_can_write_is_refused() {
    let fixture = fixture(KEYS);
    let path = fixture.dir.path().join("keys.toml");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = fixture.reload().unwrap_err();
    let AuthError::Read { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("chmod go-w"), "{source}");
}

#[test]
fn another_tenants_adapter_is_403_or_as_if_it_did_not_exist() {
    let theirs = Owner::Tenant("others".parse().unwrap());
    let ours = Owner::Tenant("team".parse().unwrap());
    let shown = fixture(KEYS);
    let caller = shown.ask("Bearer abc").unwrap();
    let ask = |fixture: &Fixture, owner| fixture.authenticator.authorize(&caller, "a", owner);
    assert_eq!(ask(&shown, Some(&theirs)), Err(Refused::Forbidden));
    assert_eq!(ask(&shown, None), Err(Refused::NotFound));
    assert_eq!((ask(&shown, Some(&ours)), ask(&shown, Some(&Owner::Everybody))), (Ok(()), Ok(())));
    let hidden = fixture(&format!("others_adapters = \"not-found\"\n{KEYS}"));
    assert_eq!(ask(&hidden, Some(&theirs)), ask(&hidden, None));
    assert_eq!((Refused::Forbidden.status(), Refused::NotFound.status()), (403, 404));
    let stranger = Owner::Address(DEV_KEYS[0].1.parse().unwrap());
    assert_eq!(ask(&shown, Some(&stranger)), Err(Refused::Forbidden));
}

#[test]
fn who_may_only_administer_uses_nobodys_adapter_and_the_admin_socket_administers() {
    let fixture = fixture(KEYS);
    let admin = Caller::new("ops".parse().unwrap(), "k", Method::ApiKey, Scopes::new(vec![Scope::Admin]));
    assert_eq!(fixture.authenticator.authorize(&admin, "a", Some(&Owner::Everybody)), Err(Refused::Forbidden));
    let local = Caller::at_socket("local".parse().unwrap(), 1000);
    assert!(local.scopes().permit_admin() && local.key() == "uid:1000");
}

#[test]
fn nothing_that_is_shown_repeats_a_secret() {
    let fixture = fixture(&format!("{}{KEYS}", wallet("")));
    let secret = "s3cret-s3cret";
    for header in [secret.to_owned(), format!("Bearer {secret}"), format!("Bearer eip191.{secret}.{secret}")] {
        let denied = fixture.ask(&header).unwrap_err();
        assert!(!denied.to_string().contains("s3cret") && !format!("{denied:?}").contains("s3cret"));
    }
    let shown = format!("{:?}{:?}", fixture.authenticator, fixture.ask("Bearer abc").unwrap());
    assert!(!shown.contains("abc") && !shown.contains(&SHA256_OF_ABC[..12]), "{shown}");
}

#[test]
fn sections_with_unknown_keys_or_impossible_values_are_refused() {
    for text in ["key = 1", "[keys]\nfiles = \"x\"", "[wallet]\naudiences = []\nttl = 1", "[jwt]\nissuer = \"x\""] {
        assert!(toml::from_str::<AuthConfig>(text).is_err(), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let address = DEV_KEYS[0].1;
    let twice = format!("addresses = [{{ address = \"{address}\" }}, {{ address = \"{}\" }}]", address.to_lowercase());
    for (text, key) in [
        ("[wallet]\naudiences = []\nstrangers = true".to_owned(), "wallet.audiences"),
        ("[wallet]\naudiences = [\"https://x\"]\nstrangers = true".to_owned(), "wallet.audiences"),
        ("[wallet]\naudiences = [\"x\"]".to_owned(), "wallet.addresses"),
        (format!("[wallet]\naudiences = [\"x\"]\n{twice}"), "wallet.addresses"),
        (wallet("skew = \"61s\""), "wallet.skew"),
        (wallet("request_ttl = \"25h\""), "wallet.request_ttl"),
        ("[jwt]\nissuer = \"x\"\naudiences = []".to_owned(), "jwt.audiences"),
        ("[jwt]\nissuer = \"x\"\naudiences = [\"y\"]\nalgorithms = []".to_owned(), "jwt.algorithms"),
    ] {
        let Err(AuthError::Config { key: found, .. }) = open(dir.path(), &text) else { panic!("{text}") };
        assert_eq!(found, key, "{text}");
    }
}

#[test]
fn who_is_let_in_and_who_is_not_is_counted_by_closed_labels() {
    let mut registry = crate::telemetry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let fixture = fixture(KEYS);
    for header in ["Bearer abc", "Bearer wrong", "Bearer other"] {
        metrics.observe(&fixture.ask(header));
    }
    let text = crate::telemetry::encode(&registry);
    assert!(text.contains("warmd_proxy_auth_accepted_total{method=\"api_key\"} 1"), "{text}");
    assert!(text.contains("warmd_proxy_auth_denied_total{reason=\"unknown\"} 2"), "{text}");
}
