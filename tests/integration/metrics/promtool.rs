//! What the linters that come with Prometheus say. Without `promtool` these tests say so and end.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use warmd::telemetry::Format;

use super::{deploy, installed, roles};

async fn lint(arguments: &[&str], input: &str) -> Option<Result<(), String>> {
    let mut command = Command::new(installed("promtool")?);
    command.args(arguments).current_dir(deploy("prometheus")).kill_on_drop(true);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(told) })
}

#[tokio::test]
async fn the_metrics_of_every_role_are_as_prometheus_wants_them() {
    for (role, registry) in roles() {
        let text = Format::Prometheus.encode(&registry);
        let Some(told) = lint(&["check", "metrics"], &text).await else { return };
        assert_eq!(told, Ok(()), "{role}: {text}");
    }
}

#[tokio::test]
async fn the_rules_are_rules_and_fire_when_they_should() {
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let Some(told) = lint(&arguments, "").await else { return };
        assert_eq!(told, Ok(()));
    }
}
