//! What a request's head says, as far as it is asked here, and the body of the form.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HOST, HeaderName};

/// Bytes of the form: a token whose characters are all escaped has room.
const MAX_FORM: usize = 4 * 1024;

/// For the form to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names that a request may come by. Another site's name that was made to point here is none of them, and a page of that
/// site reads nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hosts {
    Any,
    /// In lower case.
    Named(Vec<String>),
}

impl Hosts {
    pub(super) fn new(names: &[String], on_loopback: bool) -> Self {
        let mut names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        if names.is_empty() && !on_loopback {
            return Self::Any;
        }
        names.push("localhost".to_owned());
        Self::Named(names)
    }

    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Self::Named(names) = self else { return true };
        let mut given = headers.get_all(HOST).iter();
        let (Some(host), None) = (given.next(), given.next()) else { return false };
        let host = name(host.to_str().unwrap_or_default()).to_ascii_lowercase();
        // An address is what it says: nobody can make it point elsewhere.
        host.parse::<IpAddr>().is_ok() || names.contains(&host)
    }
}

/// Without the port, and without the brackets of an IPv6 address.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Whether a page of another site sends this, as browsers say (W3C Fetch Metadata). To go to ours is for everyone.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    let is_navigation = text(headers, &HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
    !is_navigation && comes_from_elsewhere(headers)
}

pub(super) fn comes_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
    matches!(site, Some("cross-site" | "same-site"))
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, &AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// All cookies of that name: others may have set some of it beside ours.
pub(super) fn cookies<'h>(headers: &'h HeaderMap, name: &'h str) -> impl Iterator<Item = &'h str> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(move |(given, _)| *given == name).map(|(_, value)| value)
}

pub(super) fn takes_zstd(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let quality = quality.trim().strip_prefix("q=").and_then(|quality| quality.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("zstd") && quality != Some(0.0)
    })
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The field `token` of a form (application/x-www-form-urlencoded). `None` if there is none, or it is late or too long.
pub(super) async fn token<B: Body<Data = Bytes>>(body: B) -> Option<Vec<u8>>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let form = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_FORM).collect()).await.ok()?.ok()?.to_bytes();
    let value = form.split(|byte| *byte == b'&').find_map(|pair| pair.strip_prefix(b"token="))?;
    Some(decoded(value))
}

/// What is no escape stands for itself.
fn decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| (*byte? as char).to_digit(16).map(|digit| digit as u8);
    let (mut bytes, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        let escaped = (*byte == b'%').then(|| Some((digit(text.get(at + 1))?, digit(text.get(at + 2))?))).flatten();
        bytes.push(match (escaped, byte) {
            (Some((high, low)), _) => high * 16 + low,
            (None, b'+') => b' ',
            (None, byte) => *byte,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_name_that_was_made_to_point_here_is_refused_where_the_page_is_local() {
        let local = Hosts::new(&[], true);
        for host in ["localhost:9000", "LOCALHOST", "127.0.0.1:9000", "[::1]:9000", "[::1]"] {
            assert!(local.admits(&headers(&[("host", host)])), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:9000", "", "[localhost", "127.0.0.1.evil.example"] {
            let admitted = local.admits(&headers(&[("host", host)]));
            assert_eq!(admitted, host == "[localhost", "{host}");
        }
        assert!(!local.admits(&headers(&[])));
        assert!(!local.admits(&headers(&[("host", "localhost"), ("host", "evil.example")])));
        let named = Hosts::new(&["Warmd.example".to_owned()], false);
        assert!(named.admits(&headers(&[("host", "warmd.EXAMPLE")])) && !named.admits(&headers(&[("host", "other")])));
        assert_eq!(Hosts::new(&[], false), Hosts::Any);
    }

    #[test]
    fn other_sites_may_lead_here_and_do_nothing_else() {
        let from = |site, mode| headers(&[("sec-fetch-site", site), ("sec-fetch-mode", mode)]);
        assert!(is_foreign(&from("cross-site", "no-cors")) && is_foreign(&from("same-site", "cors")));
        assert!(!is_foreign(&from("cross-site", "navigate")) && !is_foreign(&from("same-origin", "cors")));
        assert!(!is_foreign(&headers(&[])) && comes_from_elsewhere(&from("cross-site", "navigate")));
    }

    #[test]
    fn codings_cookies_and_bearers_are_read_as_they_are_written() {
        for (value, takes) in [("gzip, ZSTD", true), ("zstd;q=0", false), ("zstd; q=0.2", true), ("xzstd", false)] {
            assert_eq!(takes_zstd(&headers(&[("accept-encoding", value)])), takes, "{value}");
        }
        let headers = headers(&[("cookie", "a=1; s=x.y"), ("cookie", "s=z=;as=2"), ("authorization", "bearer  t ")]);
        assert_eq!(cookies(&headers, "s").collect::<Vec<_>>(), ["x.y", "z="]);
        assert_eq!(bearer(&headers), Some("t"));
    }

    #[tokio::test]
    async fn a_form_has_a_token_of_any_bytes_and_an_end() {
        let form = |text: &str| token(Full::new(Bytes::copy_from_slice(text.as_bytes())));
        assert_eq!(form("x=1&token=a%2Bb+c%3d%ff%zz%4").await.unwrap(), b"a+b c=\xff%zz%4");
        assert_eq!(form("tokens=1").await, None);
        assert_eq!(form(&format!("token={}", "a".repeat(MAX_FORM))).await, None);
    }
}
