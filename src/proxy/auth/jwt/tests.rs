use serde_json::json;

use super::*;
use crate::identity::PrivateKey;

const NOW: u64 = 1_800_000_000;

fn now() -> UnixTime {
    UnixTime::from_seconds(NOW)
}

/// RFC 8037 appendix A.4, RFC 7515 appendices A.3 and A.2: key, algorithm and signed text with its signature.
const PUBLISHED: [(&str, Algorithm, &str); 3] = [
    (
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        Algorithm::EdDSA,
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
         hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ),
    (
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        Algorithm::ES256,
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
         DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    (
        r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
        Algorithm::RS256,
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
         cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
];

fn set(keys: &[&str]) -> Result<KeySet, KeySetError> {
    KeySet::parse(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
}

#[test]
fn golden_signatures_of_the_standards_verify_and_altered_ones_do_not() {
    let keys = set(&PUBLISHED.map(|(key, ..)| key)).unwrap();
    for (_, algorithm, token) in PUBLISHED {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = decode(signature).unwrap();
        let key = keys.find(algorithm, None).unwrap();
        assert!(key.verify(signed.as_bytes(), &signature), "{algorithm:?}");
        assert!(!key.verify(signed.replace("ey", "eY").as_bytes(), &signature), "{algorithm:?}");
        let mut altered = signature.clone();
        altered[7] ^= 1;
        assert!(!key.verify(signed.as_bytes(), &altered), "{algorithm:?}");
        assert!(!key.verify(signed.as_bytes(), &signature[1..]), "{algorithm:?}");
        assert!(!key.verify(signed.as_bytes(), &[]), "{algorithm:?}");
    }
}

fn key(seed: u8, id: &str) -> String {
    let x = BASE64URL_NOPAD.encode(PrivateKey::from_seed(seed).public().as_bytes());
    json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "use": "sig", "alg": "EdDSA", "x": x}).to_string()
}

fn verifier(more: &str) -> JwtVerifier {
    let toml = format!("issuer = \"https://id.example.com\"\naudiences = [\"llm\"]\n{more}");
    let verifier = JwtVerifier::open(toml::from_str(&toml).unwrap()).unwrap();
    verifier.set_keys(set(&[&key(1, "one"), &key(2, "two")]).unwrap());
    verifier
}

fn claims() -> Value {
    json!({"iss": "https://id.example.com", "aud": "llm", "sub": "team", "exp": NOW + 300})
}

fn signed_by(seed: u8, header: &Value, claims: &str) -> String {
    let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let text = format!("{}.{}", encode(&header.to_string()), encode(claims));
    let signature = BASE64URL_NOPAD.encode(&PrivateKey::from_seed(seed).sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn token(claims: &Value) -> String {
    signed_by(1, &json!({"alg": "EdDSA", "kid": "one", "typ": "JWT"}), &claims.to_string())
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[test]
fn a_token_of_the_issuer_is_taken_until_it_expires() {
    let verifier = verifier("");
    for claims in [claims(), with("aud", json!(["other", "llm"])), with("exp", json!(1_800_000_300.5))] {
        let caller = verifier.verify(&token(&claims), now()).unwrap();
        assert_eq!((caller.tenant().as_str(), caller.key(), caller.method()), ("team", "team", Method::Jwt));
        assert!(caller.scopes().permit_inference() && !caller.scopes().permit_admin());
        assert_eq!(caller.expires(), Some(now().after(std::time::Duration::from_secs(300))));
    }
    let late = UnixTime::from_seconds(NOW + 360);
    assert_eq!(verifier.verify(&token(&claims()), late).unwrap_err(), Denied::Expired);
}

#[test]
fn claims_that_are_missing_or_for_others_are_denied() {
    let verifier = verifier("");
    for (claims, denied) in [
        (without("iss"), Denied::Issuer),
        (with("iss", json!("https://evil.example.com")), Denied::Issuer),
        (without("aud"), Denied::Audience),
        (with("aud", json!("other")), Denied::Audience),
        (with("aud", json!([])), Denied::Audience),
        (with("aud", json!(7)), Denied::Malformed),
        (without("exp"), Denied::TooLongLived),
        (with("exp", json!("tomorrow")), Denied::Malformed),
        (with("exp", json!(-1)), Denied::Malformed),
        (with("exp", json!(1e300)), Denied::Malformed),
        (with("nbf", json!(NOW + 61)), Denied::NotYetValid),
        (without("sub"), Denied::NoTenant),
        (with("sub", json!("a b")), Denied::NoTenant),
        (with("sub", json!(7)), Denied::NoTenant),
    ] {
        assert_eq!(verifier.verify(&token(&claims), now()).unwrap_err(), denied, "{claims}");
    }
    let twice = claims().to_string().replace("\"aud\":\"llm\"", "\"aud\":\"other\",\"aud\":\"llm\"");
    let header = json!({"alg": "EdDSA", "kid": "one"});
    assert_eq!(verifier.verify(&signed_by(1, &header, &twice), now()).unwrap_err(), Denied::Malformed);
}

#[test]
fn the_algorithm_is_pinned_and_the_key_is_the_one_that_is_named() {
    let pinned = verifier("algorithms = [\"ES256\"]");
    assert_eq!(pinned.verify(&token(&claims()), now()).unwrap_err(), Denied::Algorithm);
    let verifier = verifier("");
    let deny = |header: Value| verifier.verify(&signed_by(1, &header, &claims().to_string()), now()).unwrap_err();
    for alg in ["none", "None", "HS256", "RS512", "eddsa", ""] {
        assert_eq!(deny(json!({"alg": alg, "kid": "one"})), Denied::Algorithm, "{alg}");
    }
    assert_eq!(deny(json!({"alg": "RS256", "kid": "one"})), Denied::Signature, "an Ed25519 key is for nothing else");
    assert_eq!(deny(json!({"alg": "EdDSA", "kid": "two"})), Denied::Signature);
    assert_eq!(deny(json!({"alg": "EdDSA", "kid": "three"})), Denied::Signature);
    assert_eq!(deny(json!({"alg": "EdDSA"})), Denied::Signature, "there are two keys");
    assert_eq!(deny(json!({"alg": "EdDSA", "kid": "one", "crit": ["x"]})), Denied::Malformed);
    assert_eq!(deny(json!({"kid": "one"})), Denied::Malformed);
}

#[test]
fn a_token_whose_parts_were_exchanged_or_cut_is_denied() {
    let verifier = verifier("");
    let (mine, other) = (token(&claims()), token(&with("sub", json!("victim"))));
    let parts: Vec<&str> = mine.split('.').collect();
    let others: Vec<&str> = other.split('.').collect();
    let mixed = format!("{}.{}.{}", parts[0], others[1], parts[2]);
    assert_eq!(verifier.verify(&mixed, now()).unwrap_err(), Denied::Signature);
    assert_eq!(verifier.verify(&format!("{}.{}.", parts[0], parts[1]), now()).unwrap_err(), Denied::Signature);
    assert_eq!(verifier.verify(&format!("{mine}="), now()).unwrap_err(), Denied::Malformed);
    assert_eq!(verifier.verify("..", now()).unwrap_err(), Denied::Malformed);
}

#[test]
fn the_claim_scope_gives_no_more_than_the_configuration_allows() {
    let verifier = verifier("scopes = [\"infer\", \"adapter:*\"]");
    let scopes = |claims: &Value| verifier.verify(&token(claims), now()).unwrap().scopes().clone();
    let none = scopes(&claims());
    assert!(none.permit_inference() && !none.permit_adapter("others", false));
    let some = scopes(&with("scope", json!("openid adapter:team-* admin")));
    assert!(some.permit_adapter("team-a", false) && !some.permit_adapter("a", false));
    assert!(!some.permit_inference() && !some.permit_admin());
    let foreign = scopes(&with("scope", json!("openid profile")));
    assert!(!foreign.permit_inference() && !foreign.permit_adapter("mine", true));
}

#[test]
fn no_keys_let_nobody_in_and_new_ones_count_at_once() {
    let verifier = verifier("");
    verifier.set_keys(KeySet::default());
    assert_eq!(verifier.verify(&token(&claims()), now()).unwrap_err(), Denied::Signature);
    verifier.set_keys(set(&[&key(1, "one")]).unwrap());
    assert!(verifier.verify(&token(&claims()), now()).is_ok());
}

#[test]
fn a_key_set_is_taken_without_what_is_for_other_uses_and_refused_if_nothing_is_left() {
    let one = key(1, "one");
    let keys = set(&[
        &one,
        r#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#,
        r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        &key(2, "two").replace("\"sig\"", "\"enc\""),
        &key(3, "three").replace("\"EdDSA\"", "\"ES256\""),
        r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#,
        r#"{"kty":"EC","crv":"P-256","x":"AQAB","y":"AQAB"}"#,
    ]);
    assert_eq!(keys.unwrap().len(), 1);
    assert!(matches!(set(&[&one, &key(2, "one")]), Err(KeySetError::Duplicate(id)) if id == "one"));
    assert!(matches!(set(&[]), Err(KeySetError::NoneUsable)));
    assert!(matches!(set(&vec![one.as_str(); 129]), Err(KeySetError::TooMany(129))));
    assert!(matches!(KeySet::parse(b"{}"), Err(KeySetError::Syntax(_))));
}
