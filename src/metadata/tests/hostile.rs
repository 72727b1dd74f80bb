//! Those who do not keep to the protocol: callers without a certificate, servers that lie, stall or talk nonsense.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;
use tonic::transport::{Channel, Endpoint as Url, Uri};

use super::*;
use crate::identity::{RPC_ALPN, crypto_provider};
use crate::protocol::ProtocolError;
use crate::protocol::metadata::pb;

/// Every rpc of the service, from the file that defines it.
fn methods() -> Vec<&'static str> {
    let proto = include_str!("../../../proto/metadata.proto");
    let names = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    names.collect()
}

async fn call_raw(channel: Channel, method: &str) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(channel);
    if let Err(error) = grpc.ready().await {
        return tonic::Status::unavailable(error.to_string());
    }
    let path = format!("/warmd.v1.Metadata/{method}").parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    grpc.unary(tonic::Request::new(()), path, codec).await.expect_err("not for strangers")
}

/// Trusts any server and shows `certificate`, whose key comes from the seed.
pub(super) fn careless_tls(certificate: Option<(&NodeCertificate, u8)>) -> TlsConnector {
    let builder = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut tls = match certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, seed)) => {
            use ed25519_dalek::pkcs8::EncodePrivateKey;
            let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).to_pkcs8_der().unwrap();
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.as_bytes().to_vec());
            builder.with_client_auth_cert(certificate.chain().to_vec(), key.into()).unwrap()
        }
    };
    tls.alpn_protocols = vec![RPC_ALPN.to_vec()];
    TlsConnector::from(Arc::new(tls))
}

pub(super) fn careless(addr: SocketAddr, certificate: Option<(&NodeCertificate, u8)>) -> Channel {
    let tls = careless_tls(certificate);
    let connect = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(addr).await?;
            tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.map(TokioIo::new)
        }
    });
    Url::from_static("http://x").connect_with_connector_lazy(connect)
}

#[tokio::test]
async fn no_rpc_answers_a_caller_without_an_admitted_certificate() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    let self_signed = NodeCertificate::self_signed(&PrivateKey::from_seed(66)).unwrap();
    assert_eq!(methods().len(), 9);
    for method in methods() {
        for certificate in [None, Some((&self_signed, 66))] {
            let status = call_raw(careless(server.addr(), certificate), method).await;
            assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{method}: {status}");
        }
    }
    // The same client is heard once its certificate is of the cluster: the refusals above were not for another reason.
    cluster.node(66);
    let ours = NodeCertificate::load(&cluster.dir.path().join("66.pem")).unwrap();
    let status = call_raw(careless(server.addr(), Some((&ours, 66))), "Lookup").await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    server.shutdown(PATIENCE).await;
}

/// The gate in front of the handlers, without TLS before it.
#[tokio::test]
async fn no_handler_runs_without_a_known_caller() {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let tasks = Tasks::new();
    tasks.spawn("plain server", async {
        let service = crate::metadata::server::tests::bare_service();
        let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(b)]).chain(futures_util::stream::pending());
        let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
        served.await.unwrap();
    });
    let mut once = Some(TokioIo::new(a));
    let connect = tower::service_fn(move |_: Uri| {
        let io = once.take();
        async move { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let channel = Url::from_static("http://x").connect_with_connector_lazy(connect);
    for method in methods() {
        assert_eq!(call_raw(channel.clone(), method).await.code(), Code::Unauthenticated, "{method}");
    }
}

#[tokio::test]
async fn connections_that_fail_do_not_end_accepting() {
    let cluster = Cluster::new(1);
    let server = cluster.server(None).await;
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"", &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 4096]] {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
    }
    cluster.client(2, &server).list(&PageRequest::default()).await.unwrap();
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn connections_beyond_the_cap_are_refused_and_ended_ones_make_room() {
    let cluster = Cluster::new(1);
    let mut config = Config::new("127.0.0.1:0".parse().unwrap());
    config.max_connections = 1;
    let server = Server::bind(config, &cluster.node(SERVER), &mut Metrics::default()).await.unwrap();
    let first = cluster.client(2, &server);
    first.list(&PageRequest::default()).await.unwrap();
    let second = cluster.client(3, &server).list(&PageRequest::default()).await;
    assert!(matches!(second, Err(ClientError::Unavailable { .. })));
    drop(first);
    let heard = async {
        while cluster.client(3, &server).list(&PageRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
    server.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn one_node_never_has_all_connections() {
    use crate::metadata::metrics::{Reject, RejectLabels};
    use crate::metadata::server::MAX_OF_NODE;
    let cluster = Cluster::new(1);
    let mut config = Config::new("127.0.0.1:0".parse().unwrap());
    config.max_connections = MAX_OF_NODE + 1;
    let server = Server::bind(config, &cluster.node(SERVER), &mut Metrics::default()).await.unwrap();
    cluster.node(66);
    let ours = NodeCertificate::load(&cluster.dir.path().join("66.pem")).unwrap();
    let tls = careless_tls(Some((&ours, 66)));
    let mut open = Vec::new();
    for _ in 0..=MAX_OF_NODE {
        let stream = TcpStream::connect(server.addr()).await.unwrap();
        open.push(tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap());
    }
    let full = || server.directory().metrics.rejects.get_or_create(&RejectLabels { reason: Reject::Full }).get();
    let refused = async {
        while full() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    cluster.client(2, &server).list(&PageRequest::default()).await.unwrap();
    drop(open);
    server.shutdown(PATIENCE).await;
}

/// A client whose only server is `behave`, after a proper handshake.
async fn client_of<F: Future<Output = ()> + Send + 'static>(
    tasks: &Tasks,
    deadline: Duration,
    behave: impl Fn(tokio_rustls::server::TlsStream<TcpStream>) -> F + Send + 'static,
) -> Client {
    let cluster = Cluster::new(1);
    let acceptor = TlsAcceptor::from(Arc::new(cluster.node(SERVER).server_config(RPC_ALPN).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = tasks.child();
    tasks.spawn("hostile server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(stream).await {
                connections.spawn("hostile connection", behave(tls));
            }
        }
    });
    let config = ClientConfig { deadline, ..ClientConfig::new(vec![ServerAddr::new(Some(key(SERVER)), addr)]) };
    Client::new(config, &cluster.node(2), ClientMetrics::default()).unwrap()
}

#[tokio::test]
async fn a_server_that_never_answers_costs_one_deadline() {
    let tasks = Tasks::new();
    let client = client_of(&tasks, Duration::from_millis(200), |_tls| std::future::pending()).await;
    let asked = tokio::time::timeout(PATIENCE, client.lookup(&lookup(1))).await.expect("the client gives up by itself");
    assert!(matches!(asked, Err(ClientError::Unavailable { .. })));
    let watched = tokio::time::timeout(PATIENCE, client.watch(&[identity(1)])).await.unwrap();
    assert!(matches!(watched, Err(ClientError::Unavailable { .. })));
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_a_typed_error() {
    let tasks = Tasks::new();
    let client =
        client_of(&tasks, PATIENCE, |mut tls| async move { while tls.write_all(&[0xa5; 16 * 1024]).await.is_ok() {} })
            .await;
    let error = client.lookup(&lookup(1)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. } | ClientError::Protocol { .. }), "{error:?}");
}

/// Answers every call with the same message.
#[derive(Clone)]
struct Liar(Arc<Vec<u8>>);

impl Liar {
    /// One gRPC message, whatever is asked.
    fn answer(&self) -> hyper::Response<http_body_util::StreamBody<impl futures_util::Stream<Item = Frame> + use<>>> {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(self.0.len()).unwrap().to_be_bytes());
        message.extend_from_slice(&self.0);
        let mut trailers = hyper::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = [hyper::body::Frame::data(bytes::Bytes::from(message)), hyper::body::Frame::trailers(trailers)];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
        hyper::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
    }
}

type Frame = Result<hyper::body::Frame<bytes::Bytes>, std::convert::Infallible>;

async fn client_of_liar(tasks: &Tasks, message: Vec<u8>) -> Client {
    let liar = Liar(Arc::new(message));
    client_of(tasks, PATIENCE, move |tls| {
        let liar = liar.clone();
        async move {
            let service = hyper::service::service_fn(move |_| {
                let answer = liar.answer();
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            let executor = hyper_util::rt::TokioExecutor::new();
            let _ =
                hyper::server::conn::http2::Builder::new(executor).serve_connection(TokioIo::new(tls), service).await;
        }
    })
    .await
}

#[tokio::test]
async fn lies_are_refused_before_they_cost_memory_and_are_typed() {
    let holder = pb::Holder { chunks_held: 9, ..Default::default() };
    let offer = pb::Offer { holders: vec![holder], ..Default::default() };
    let lies = [
        ("no server epoch", pb::LookupReply::default().encode_to_vec()),
        ("a million offers", [0x12, 0].repeat(1_000_000)),
        ("more than the largest message", vec![0; crate::protocol::metadata::MAX_MESSAGE + 1]),
        (
            "an offer of nothing",
            pb::LookupReply { server_epoch: 1, offers: vec![offer], truncated: false }.encode_to_vec(),
        ),
        ("no message", vec![0xff; 100]),
    ];
    for (lie, message) in lies {
        let tasks = Tasks::new();
        let error = client_of_liar(&tasks, message).await.lookup(&lookup(1)).await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{lie}: {error:?}");
    }
    let tasks = Tasks::new();
    let client =
        client_of_liar(&tasks, pb::WatchEvent { server_epoch: 1, kind: 77, ..Default::default() }.encode_to_vec())
            .await;
    let mut watch = client.watch(&[identity(1)]).await.unwrap();
    let event = watch.next().await.unwrap();
    assert!(matches!(event, Err(ClientError::Protocol { source: ProtocolError::Invalid("kind"), .. })), "{event:?}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn artifacts_of_identities_that_nobody_asked_for_are_left_out() {
    use crate::protocol::metadata::{Found, HolderInfo, Load, Offer, ServerEpoch};
    let holder = HolderInfo {
        node: key(7),
        endpoints: Arc::from(["10.0.0.7:1".parse().unwrap()]),
        load: Load::default(),
        locality: Arc::default(),
        chunks_held: 4,
    };
    let offer = |of| Offer { artifact: held(1, of, 4, 4).artifact, holders: vec![holder.clone()], holder_count: 1 };
    let found = Found { server_epoch: ServerEpoch(1), offers: vec![offer(2), offer(1)], truncated: false };
    let tasks = Tasks::new();
    let client = client_of_liar(&tasks, pb::LookupReply::from(found).encode_to_vec()).await;
    assert_eq!(client.lookup(&lookup(1)).await.unwrap().offers, [offer(1)]);
}

/// rustls asks somebody; this one never says no.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}
