use super::super::signature::tests::{DEV_KEYS, mirrored, sign};
use super::*;

const NOW: u64 = 1_800_000_000;
const DOMAIN: &str = "llm.example.com";
const REQUEST: Request<'static> = Request { method: "POST", path: "/v1/chat/completions", body: b"{\"model\":\"a\"}" };

fn at(seconds: u64) -> UnixTime {
    UnixTime::from_seconds(NOW + seconds)
}

struct Fixture {
    wallets: Wallets,
    _dir: tempfile::TempDir,
}

/// The first development account is listed, the second is not.
fn fixture(more: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let toml = format!(
        "audiences = [\"{DOMAIN}\"]\n{more}\n[[addresses]]\naddress = \"{}\"\ntenant = \"team\"\nscopes = [\"infer\", \"admin\"]",
        DEV_KEYS[0].1
    );
    let wallets = Wallets::open(toml::from_str(&toml).unwrap(), dir.path()).unwrap();
    Fixture { wallets, _dir: dir }
}

fn sign_in(who: usize) -> SignIn {
    SignIn {
        domain: DOMAIN.to_owned(),
        address: DEV_KEYS[who].1.parse().unwrap(),
        statement: None,
        chain: 1,
        nonce: "4f1c9a7be02d6358".to_owned(),
        issued: at(0),
        expires: at(300),
        not_before: None,
        scopes: vec![Scope::Infer],
        purpose: Use::Session { token: TokenId::EPHEMERAL, generation: 0 },
    }
}

fn once(who: usize, nonce: &str) -> SignIn {
    SignIn { nonce: nonce.to_owned(), purpose: Use::once(&REQUEST), ..sign_in(who) }
}

fn joined(text: &str, signature: &str) -> String {
    format!("{}.{signature}", BASE64URL_NOPAD.encode(text.as_bytes()))
}

/// Signed by the key of account `who`.
fn token(sign_in: &SignIn, who: usize) -> String {
    let text = sign_in.to_string();
    joined(&text, &sign(DEV_KEYS[who].0, &text))
}

#[test]
fn a_session_text_counts_for_many_requests_until_it_expires() {
    let Fixture { wallets, _dir } = fixture("");
    let token = token(&sign_in(0), 0);
    for now in [at(0), at(1), at(299), at(359)] {
        let caller = wallets.verify(&token, None, now).unwrap();
        assert_eq!((caller.tenant().as_str(), caller.method()), ("team", Method::WalletSession));
        assert_eq!(caller.address(), Some(DEV_KEYS[0].1.parse().unwrap()));
        assert_eq!(caller.expires(), Some(at(300)));
        assert!(caller.scopes().permit_inference() && !caller.scopes().permit_admin(), "it asked for less");
    }
    assert_eq!(wallets.verify(&token, None, at(360)).unwrap_err(), Denied::Expired, "verified once or not");
}

#[test]
fn a_signature_that_recovers_to_another_address_than_the_text_names_is_denied() {
    let Fixture { wallets, _dir } = fixture("strangers = true");
    // Well formed and valid, of an account that would be let in, but the text names somebody else.
    assert_eq!(wallets.verify(&token(&sign_in(0), 1), None, at(0)).unwrap_err(), Denied::Signature);
    let text = sign_in(0).to_string();
    let altered = joined(&text.replace("scope:infer", "scope:admin"), &sign(DEV_KEYS[0].0, &text));
    assert_eq!(wallets.verify(&altered, None, at(0)).unwrap_err(), Denied::Signature);
    let foreign = joined(&text, &sign(DEV_KEYS[0].0, "another text"));
    assert_eq!(wallets.verify(&foreign, None, at(0)).unwrap_err(), Denied::Signature);
}

#[test]
fn the_mirrored_signature_is_denied_though_it_recovers() {
    let Fixture { wallets, _dir } = fixture("");
    let text = once(0, "aaaaaaaa").to_string();
    let twin = joined(&text, &mirrored(&sign(DEV_KEYS[0].0, &text)));
    assert_eq!(wallets.verify(&twin, Some(&REQUEST), at(0)).unwrap_err(), Denied::Signature);
}

#[test]
fn times_audience_and_chain_are_checked_whoever_signed() {
    let Fixture { wallets, _dir } = fixture("chain = 1");
    let base = sign_in(0);
    for (changed, denied) in [
        (SignIn { expires: at(0), ..base.clone() }, Denied::Expired),
        (SignIn { issued: at(61), ..base.clone() }, Denied::NotYetValid),
        (SignIn { not_before: Some(at(61)), ..base.clone() }, Denied::NotYetValid),
        (SignIn { expires: at(24 * 3600 + 1), ..base.clone() }, Denied::TooLongLived),
        (SignIn { expires: at(301), ..once(0, "aaaaaaaa") }, Denied::TooLongLived),
        (SignIn { domain: "other.example.com".to_owned(), ..base.clone() }, Denied::Audience),
        (SignIn { chain: 5, ..base.clone() }, Denied::Audience),
    ] {
        assert_eq!(wallets.verify(&token(&changed, 0), Some(&REQUEST), at(0)).unwrap_err(), denied);
    }
    let within_skew = SignIn { issued: at(60), ..base };
    assert!(wallets.verify(&token(&within_skew, 0), None, at(0)).is_ok());
}

#[test]
fn only_sessions_that_can_be_revoked_alone_may_live_longer_than_a_day() {
    let Fixture { wallets, _dir } = fixture("session_ttl = \"30days\"");
    let long = SignIn { expires: at(30 * 24 * 3600), ..sign_in(0) };
    assert_eq!(wallets.verify(&token(&long, 0), None, at(0)).unwrap_err(), Denied::TooLongLived);
    let named = SignIn { purpose: Use::Session { token: TokenId::new(3), generation: 0 }, ..long };
    assert!(wallets.verify(&token(&named, 0), None, at(0)).is_ok());
}

#[test]
fn a_revoked_session_ends_at_once_though_its_signature_was_verified_before() {
    let Fixture { wallets, _dir } = fixture("");
    let named = SignIn { purpose: Use::Session { token: TokenId::new(3), generation: 0 }, ..sign_in(0) };
    let (named, ephemeral) = (token(&named, 0), token(&sign_in(0), 0));
    assert!(wallets.verify(&named, None, at(0)).is_ok() && wallets.verify(&ephemeral, None, at(0)).is_ok());
    let address = DEV_KEYS[0].1.parse().unwrap();
    wallets.sessions().revoke(address, TokenId::new(3)).unwrap();
    assert_eq!(wallets.verify(&named, None, at(1)).unwrap_err(), Denied::Revoked);
    assert!(wallets.verify(&ephemeral, None, at(1)).is_ok());
    wallets.sessions().revoke_all(address).unwrap();
    assert_eq!(wallets.verify(&ephemeral, None, at(1)).unwrap_err(), Denied::Revoked);
    let next = SignIn { purpose: Use::Session { token: TokenId::EPHEMERAL, generation: 1 }, ..sign_in(0) };
    assert!(wallets.verify(&token(&next, 0), None, at(1)).is_ok());
}

#[test]
fn a_text_for_one_request_counts_once_and_for_that_request_only() {
    let Fixture { wallets, _dir } = fixture("");
    let signed = token(&once(0, "aaaaaaaa"), 0);
    for other in [
        Request { method: "GET", ..REQUEST },
        Request { path: "/v1/completions", ..REQUEST },
        Request { body: b"{\"model\":\"b\"}", ..REQUEST },
    ] {
        assert_eq!(wallets.verify(&signed, Some(&other), at(0)).unwrap_err(), Denied::OtherRequest);
    }
    let caller = wallets.verify(&signed, Some(&REQUEST), at(0)).unwrap();
    assert_eq!(caller.method(), Method::WalletRequest);
    for now in [at(0), at(1), at(359)] {
        assert_eq!(wallets.verify(&signed, Some(&REQUEST), now).unwrap_err(), Denied::Replayed);
    }
    assert_eq!(wallets.verify(&signed, Some(&REQUEST), at(360)).unwrap_err(), Denied::Expired);
    assert!(wallets.verify(&token(&once(0, "aaaaaaab"), 0), Some(&REQUEST), at(0)).is_ok());
}

#[test]
fn a_text_for_one_request_is_no_session_and_its_body_is_asked_for_only_after_its_signature() {
    let Fixture { wallets, _dir } = fixture("");
    let signed = once(0, "aaaaaaaa");
    assert_eq!(wallets.verify(&token(&signed, 0), None, at(0)).unwrap_err(), Denied::NeedsRequest);
    assert_eq!(wallets.verify(&token(&signed, 1), None, at(0)).unwrap_err(), Denied::Signature);
    assert!(wallets.verify(&token(&signed, 0), Some(&REQUEST), at(0)).is_ok(), "the question used nothing up");
}

#[test]
fn nobody_uses_up_a_nonce_without_the_signature() {
    let Fixture { wallets, _dir } = fixture("");
    let signed = once(0, "aaaaaaaa");
    assert_eq!(wallets.verify(&token(&signed, 1), Some(&REQUEST), at(0)).unwrap_err(), Denied::Signature);
    assert!(wallets.verify(&token(&signed, 0), Some(&REQUEST), at(0)).is_ok());
}

#[test]
fn strangers_are_denied_unless_they_are_let_in_and_then_may_only_infer() {
    let stranger = SignIn { scopes: vec![Scope::Infer, Scope::Admin], ..sign_in(1) };
    let shut = fixture("");
    assert_eq!(shut.wallets.verify(&token(&stranger, 1), None, at(0)).unwrap_err(), Denied::Stranger);
    let one = token(&once(1, "aaaaaaaa"), 1);
    assert_eq!(shut.wallets.verify(&one, Some(&REQUEST), at(0)).unwrap_err(), Denied::Stranger);
    let open = fixture("strangers = true");
    let caller = open.wallets.verify(&token(&stranger, 1), None, at(0)).unwrap();
    assert_eq!(caller.tenant().as_str(), DEV_KEYS[1].1);
    assert!(caller.scopes().permit_inference() && !caller.scopes().permit_admin());
    assert!(open.wallets.verify(&one, Some(&REQUEST), at(0)).is_ok());
}

#[test]
fn the_static_signature_of_0g_counts_only_with_the_flag_and_for_listed_addresses() {
    let text = "0g-serving-inference-auth";
    let flagged = fixture(&format!("strangers = true\ninsecure_static_text = \"{text}\""));
    let caller = flagged.wallets.verify_static(&sign(DEV_KEYS[0].0, text)).unwrap();
    assert_eq!((caller.method(), caller.tenant().as_str()), (Method::WalletStatic, "team"));
    // Any 65 well-formed bytes recover to some address.
    assert_eq!(flagged.wallets.verify_static(&sign(DEV_KEYS[0].0, "other")).unwrap_err(), Denied::Stranger);
    assert_eq!(flagged.wallets.verify_static(&sign(DEV_KEYS[1].0, text)).unwrap_err(), Denied::Stranger);
    let off = fixture("");
    assert!(!off.wallets.takes_static());
    assert_eq!(off.wallets.verify_static(&sign(DEV_KEYS[0].0, text)).unwrap_err(), Denied::MethodOff);
}

#[test]
fn what_is_no_token_is_denied_and_nothing_of_it_is_kept() {
    let Fixture { wallets, _dir } = fixture("");
    let good = token(&sign_in(0), 0);
    let (text, signature) = good.split_once('.').unwrap();
    for (bad, denied) in [
        (String::new(), Denied::Malformed),
        (".".to_owned(), Denied::Malformed),
        (text.to_owned(), Denied::Malformed),
        (format!("{text}="), Denied::Malformed),
        (format!("!!!.{signature}"), Denied::Malformed),
        (format!("{text}.{signature}00"), Denied::Signature),
        (format!("{text}."), Denied::Signature),
        (format!("{}.{signature}", "A".repeat(8000)), Denied::TooLong),
    ] {
        assert_eq!(wallets.verify(&bad, None, at(0)).unwrap_err(), denied, "{bad:.40}");
    }
    assert!(wallets.verified.lock().unwrap().is_empty());
}
