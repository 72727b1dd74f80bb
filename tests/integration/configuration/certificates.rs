//! Certificates that are no good.

use std::path::Path;
use std::time::{Duration, SystemTime};

use warmd::discovery::Mode;
use warmd::identity::{ClusterCa, PrivateKey};
use warmd::transport::{Endpoint, TransportConfig};

use super::super::harness::cluster::{Cluster, DEADLINE, certify};
use super::super::harness::ports;
use super::super::harness::program::Program;
use super::{stdout, text, warmd};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    Expired,
    NotYet,
    Foreign,
}

/// Makes a certificate with that flaw, in the place of the one of the state directory.
fn spoil(cluster: &Cluster, state: &Path, flaw: Flaw) {
    if let Flaw::Foreign = flaw {
        let ca = ClusterCa::create("test", &PrivateKey::generate().unwrap()).unwrap();
        return certify(&ca, state, 30 * DAY);
    }
    let pem_of = |path: &Path| std::fs::read_to_string(path).unwrap();
    let key = |pem: &str| rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ED25519).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(cluster.authority_pem(), key(&cluster.authority_key_pem())).unwrap();
    let node = PrivateKey::load(&state.join("node.key")).unwrap().node_id();
    let mut params = rcgen::CertificateParams::new(vec![warmd::identity::server_name(node)]).unwrap();
    let now = SystemTime::now();
    let (from, until) = match flaw {
        Flaw::Expired => (now - 20 * DAY, now - 10 * DAY),
        _ => (now + 10 * DAY, now + 20 * DAY),
    };
    (params.not_before, params.not_after) = (from.into(), until.into());
    let certificate = params.signed_by(&key(&pem_of(&state.join("node.key"))), &issuer).unwrap();
    std::fs::write(state.join("node.pem"), certificate.pem()).unwrap();
}

/// `2026-11-22` of the day that is so many from today.
fn date(days: i64) -> String {
    let day = (SystemTime::now() + 1000 * DAY) - Duration::from_secs(86_400 * (1000 - days) as u64);
    humantime::format_rfc3339_seconds(day).to_string()[..10].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_no_good_is_told_of_by_check_at_the_start_and_by_whoever_refuses_it() {
    let cluster = Cluster::without_server();
    let open = |name: &str| {
        let mut config = cluster.config(name);
        config.transport.listen = ports::free();
        (config.discovery.mode, config.metrics.listen) = (Mode::Serverless, None);
        let file = cluster.path(&format!("{name}.toml"));
        std::fs::write(&file, warmd::config::render(&config)).unwrap();
        (config, text(&file).to_owned())
    };
    let start = |file: &str| Program::start(&["agent", "--config", file, "--log-level", "info"], &[]);
    let (good, good_file) = open("good");
    let mut good_agent = start(&good_file);
    good_agent.says("agent ready").await;
    for (name, flaw, fact) in [
        ("expired", Flaw::Expired, format!("expired at {}", date(-10))),
        ("early", Flaw::NotYet, format!("is not valid before {}", date(10))),
        ("foreign", Flaw::Foreign, "is of another authority than this cluster's".to_owned()),
    ] {
        let (config, file) = open(name);
        spoil(&cluster, &config.state_dir, flaw);
        let certificate = config.state_dir.join("node.pem");
        let told_by_all = [fact.as_str(), "`warmd keys node`", "SIGHUP"];
        let is_told = |text: &str, by: &str| {
            let lacking = told_by_all.iter().find(|word| !text.contains(**word));
            assert!(lacking.is_none(), "{name}, {by}: `{lacking:?}` is not in {text}");
        };
        let checked = warmd(&["config", "check", "agent", &file], &[]);
        is_told(&stdout(&checked), "check");
        assert!(stdout(&checked).contains(text(&certificate)), "{}", stdout(&checked));
        let names_ca = stdout(&checked).contains(text(&config.state_dir.join("ca.pem")));
        assert_eq!(names_ca, matches!(flaw, Flaw::Foreign));

        let mut agent = start(&file);
        let told = agent.says("nobody will speak with this node: ").await;
        is_told(&told, "start");
        assert!(told.contains(text(&certificate)), "{told}");
        agent.says("agent ready").await;

        let tls = config.node.tls(&config.state_dir).unwrap();
        let dial = TransportConfig { listen: ([127, 0, 0, 1], 0).into(), ..TransportConfig::default() };
        let endpoint = Endpoint::bind(&dial, &tls).unwrap();
        let node = good.node.tls(&good.state_dir).unwrap().node_id();
        let refused = async {
            let connection = endpoint.connect(node, &[good.transport.listen]).await?;
            connection.closed().await;
            Ok::<(), warmd::transport::TransportError>(())
        };
        // Over QUIC the client is done before it hears that it is refused.
        let _ = tokio::time::timeout(DEADLINE, refused).await.unwrap();
        // The one before may have come over TCP as well.
        let told = loop {
            let told = good_agent.says("a node is refused: its certificate ").await;
            if told.contains(&fact) {
                break told;
            }
        };
        is_told(&told, "who refuses it");
    }
}
