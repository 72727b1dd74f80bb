//! Members that ask for more streams of HTTP/2 than anybody needs, in frames that no client library would write.

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::hostile::careless_tls;
use super::*;

// Types of frames, and codes of errors: RFC 9113, sections 6 and 7.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

const END_HEADERS: u8 = 4;

/// POST https / to `x`, from the static table of RFC 7541.
const REQUEST: [u8; 6] = [0x83, 0x87, 0x84, 0x41, 1, b'x'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A connection of a member that has said hello.
async fn connect(cluster: &Cluster, server: &Server) -> TlsStream<TcpStream> {
    cluster.node(2);
    let certificate = NodeCertificate::load(&cluster.dir.path().join("2.pem")).unwrap();
    let stream = TcpStream::connect(server.addr()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = careless_tls(Some((&certificate, 2))).connect(name, stream).await.unwrap();
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    tls.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    tls
}

/// Type, stream and the last four bytes of the next frame; `None` when the server has closed.
async fn next_frame(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(u8, u32)> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await.ok()?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; len];
    from.read_exact(&mut payload).await.ok()?;
    let code = match head[3] {
        RST_STREAM => payload[..4].try_into().unwrap(),
        GOAWAY => payload[4..8].try_into().unwrap(),
        _ => [0; 4],
    };
    Some((head[3], u32::from_be_bytes(code)))
}

/// Writes `flood` while it reads until the server has sent what `is_it` looks for.
async fn until(tls: TlsStream<TcpStream>, flood: Vec<u8>, is_it: impl Fn(u8, u32) -> bool) {
    let (mut from, mut to) = tokio::io::split(tls);
    let found = async {
        while let Some((kind, code)) = next_frame(&mut from).await {
            if is_it(kind, code) {
                return true;
            }
        }
        false
    };
    let write = async {
        // It may be cut off before all is written.
        let _ = to.write_all(&flood).await;
        let _ = to.flush().await;
        std::future::pending::<()>().await;
    };
    let found = async {
        tokio::select! {
            found = found => found,
            () = write => unreachable!("it waits for ever"),
        }
    };
    assert!(tokio::time::timeout(PATIENCE, found).await.unwrap(), "the server closed without a word");
}

#[tokio::test]
async fn a_member_that_opens_streams_and_takes_them_back_is_cut_off_and_others_are_served() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let tls = connect(&cluster, &server).await;
    let mut flood = Vec::new();
    for stream in (1..200_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &REQUEST));
        flood.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    until(tls, flood, |kind, code| kind == GOAWAY && code == ENHANCE_YOUR_CALM).await;
    cluster.client(3, &server).list(&PageRequest::default()).await.unwrap();
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_while_those_of_others_are_served() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let tls = connect(&cluster, &server).await;
    let mut flood = Vec::new();
    for stream in (1..2_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &REQUEST));
    }
    until(tls, flood, |kind, code| kind == RST_STREAM && code == REFUSED_STREAM).await;
    cluster.client(3, &server).list(&PageRequest::default()).await.unwrap();
    server.shutdown(PATIENCE).await;
}
