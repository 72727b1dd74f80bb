//! The files of the page, out of the program.

use std::collections::HashMap;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_ENCODING, ETAG, HeaderValue, IF_NONE_MATCH, VARY};

use super::reply::{self, Reply};
use super::request;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// By path. The page itself is at `/`.
const FILES: [(&str, &str, &[u8]); 14] = [
    ("/", HTML, include_bytes!("page/index.html")),
    ("/style.css", CSS, include_bytes!("page/style.css")),
    ("/icon.svg", SVG, include_bytes!("page/icon.svg")),
    ("/theme.js", JS, include_bytes!("page/theme.js")),
    ("/app.js", JS, include_bytes!("page/app.js")),
    ("/stream.js", JS, include_bytes!("page/stream.js")),
    ("/model.js", JS, include_bytes!("page/model.js")),
    ("/dom.js", JS, include_bytes!("page/dom.js")),
    ("/text.js", JS, include_bytes!("page/text.js")),
    ("/fleet.js", JS, include_bytes!("page/fleet.js")),
    ("/node.js", JS, include_bytes!("page/node.js")),
    ("/artifacts.js", JS, include_bytes!("page/artifacts.js")),
    ("/transfers.js", JS, include_bytes!("page/transfers.js")),
    ("/starts.js", JS, include_bytes!("page/starts.js")),
];

pub(super) const LOGIN: &str = include_str!("page/login.html");

/// What a level above brings for files of this size is not worth the time at the start.
const LEVEL: i32 = 9;

/// All of them, compressed once.
#[derive(Debug)]
pub(super) struct Assets(HashMap<&'static str, Asset>);

#[derive(Debug)]
struct Asset {
    kind: &'static str,
    plain: Form,
    /// Absent where it is not smaller.
    zstd: Option<Form>,
}

/// Bytes with their strong tag: one for each coding, as RFC 9110 (8.8.3) wants it.
#[derive(Debug)]
struct Form {
    bytes: Bytes,
    tag: String,
}

impl Form {
    fn new(bytes: Bytes) -> Self {
        let tag = format!("\"{}\"", &blake3::hash(&bytes).to_hex()[..32]);
        Self { bytes, tag }
    }
}

impl Assets {
    pub(super) fn new() -> Self {
        let asset = |(path, kind, bytes): (&'static str, &'static str, &'static [u8])| {
            let zstd = zstd::bulk::compress(bytes, LEVEL).ok().filter(|packed| packed.len() < bytes.len());
            let zstd = zstd.map(|packed| Form::new(packed.into()));
            (path, Asset { kind, plain: Form::new(Bytes::from_static(bytes)), zstd })
        };
        Self(FILES.into_iter().map(asset).collect())
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// The file at `path`, or that the client has it.
    pub(super) fn serve(&self, path: &str, headers: &HeaderMap) -> Option<Reply> {
        let asset = self.0.get(path)?;
        let packed = asset.zstd.as_ref().filter(|_| request::takes_zstd(headers));
        let form = packed.unwrap_or(&asset.plain);
        let mut reply = match has(headers, &form.tag) {
            true => reply::empty(StatusCode::NOT_MODIFIED),
            false => reply::whole(StatusCode::OK, asset.kind, form.bytes.clone()),
        };
        let head = reply.headers_mut();
        head.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        head.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if packed.is_some() {
            head.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        }
        if let Ok(tag) = HeaderValue::from_str(&form.tag) {
            head.insert(ETAG, tag);
        }
        Some(reply)
    }
}

/// Whether the client has this version, as it says.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::header::ACCEPT_ENCODING;

    use super::*;

    fn headers(pairs: &[(hyper::header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[tokio::test]
    async fn a_client_gets_what_it_can_read_and_only_once() {
        let assets = Assets::new();
        let plain = assets.serve("/app.js", &HeaderMap::new()).unwrap();
        let packed = assets.serve("/app.js", &headers(&[(ACCEPT_ENCODING, "gzip, zstd;q=0.5")])).unwrap();
        assert_eq!(
            (plain.headers().get(CONTENT_ENCODING), &packed.headers()[CONTENT_ENCODING]),
            (None, &"zstd".parse().unwrap())
        );
        let (tag, packed_tag) = (plain.headers()[ETAG].clone(), packed.headers()[ETAG].clone());
        assert_ne!(tag, packed_tag);
        let bytes = packed.into_body().collect().await.unwrap().to_bytes();
        let text = plain.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), text);
        let known = format!("\"other\", W/{}", tag.to_str().unwrap());
        let again = assets.serve("/app.js", &headers(&[(IF_NONE_MATCH, &known)])).unwrap();
        assert_eq!((again.status(), &again.headers()[ETAG]), (StatusCode::NOT_MODIFIED, &tag));
        let other = [(IF_NONE_MATCH, known.as_str()), (ACCEPT_ENCODING, "zstd")];
        assert_eq!(assets.serve("/app.js", &headers(&other)).unwrap().status(), StatusCode::OK);
    }

    #[test]
    fn the_page_is_small_and_brings_all_that_it_names() {
        let size: usize = FILES.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(size + LOGIN.len() < 60_000, "{size} bytes");
        for (path, _, bytes) in FILES {
            let text = std::str::from_utf8(bytes).unwrap();
            assert!(
                !text.contains("http:") && !text.contains("https:") || path == "/icon.svg",
                "{path} names another place"
            );
            assert!(!text.contains("innerHTML") && !text.contains(" style="), "{path}");
            for (_, rest) in text.match_indices("from './").map(|(at, found)| text.split_at(at + found.len())) {
                let name = rest.split('\'').next().unwrap();
                assert!(FILES.iter().any(|(known, ..)| known[1..] == *name), "{path} imports {name}");
            }
        }
    }
}
