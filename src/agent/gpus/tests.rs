use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::telemetry::{Format, Registry};

const DEADLINE: Duration = Duration::from_secs(60);

/// In place of the program: a shell that runs `script`.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new(script: &str) -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        // Written by another process: a file that this one has open for writing may not be run.
        let mut tee = std::process::Command::new("/bin/sh");
        tee.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\"", "sh", script]).arg(fake.path());
        assert!(tee.status().unwrap().success());
        std::fs::set_permissions(fake.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        fake
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("smi")
    }

    fn section(&self) -> GpuSection {
        GpuSection { enabled: true, program: Some(self.path()) }
    }
}

/// Told and followed.
struct Followed {
    gpus: Gpus,
    registry: Registry,
    tasks: Tasks,
}

impl Followed {
    fn new(section: &GpuSection) -> Self {
        let (mut registry, tasks) = (Registry::default(), Tasks::new());
        let gpus = Gpus::register(&mut registry);
        gpus.follow(section, &tasks);
        Self { gpus, registry, tasks }
    }

    async fn until(&self, told: impl FnMut(&Table) -> bool) {
        let mut table = self.gpus.0.subscribe();
        timeout(DEADLINE, table.wait_for(told)).await.expect("it is not told").unwrap();
    }

    fn scrape(&self) -> String {
        Format::Prometheus.encode(&self.registry)
    }
}

fn line(index: u8, used: u32) -> String {
    format!("{index}, GPU-{index}, NVIDIA H100, 35, {used}, 81559, 41, [N/A]")
}

fn used(table: &Table, index: u8) -> Option<u64> {
    Some(table.0.get(&index)?.1.gpu.memory?.used >> 20)
}

#[tokio::test]
async fn what_the_program_tells_is_told_and_what_is_no_reading_is_not() {
    let script = format!(
        "echo \"$@\" > \"$0.asked\"; echo 'Failed to initialize NVML: oh, no'; echo '{}'; printf '\\377\\n'; echo '{}'; sleep 1000",
        line(0, 10),
        line(1, 11)
    );
    let fake = Fake::new(&script);
    let followed = Followed::new(&fake.section());
    followed.until(|table| used(table, 1) == Some(11)).await;
    let asked = std::fs::read_to_string(fake.0.path().join("smi.asked")).unwrap();
    assert_eq!(asked, format!("--query-gpu={QUERY} --format=csv,noheader,nounits -l 15\n"));
    let now = followed.gpus.now();
    assert_eq!(
        now.iter().map(|gpu| (gpu.index, gpu.name.as_str())).collect::<Vec<_>>(),
        [(0, "NVIDIA H100"), (1, "NVIDIA H100")]
    );
    let scraped = followed.scrape();
    for line in [
        r#"warmd_gpu_info{gpu="0",uuid="GPU-0",name="NVIDIA H100"} 1"#,
        r#"warmd_gpu_utilization_ratio{gpu="1"} 0.35"#,
        r#"warmd_gpu_memory_used_bytes{gpu="0"} 10485760"#,
        r#"warmd_gpu_temperature_celsius{gpu="0"} 41"#,
        "# TYPE warmd_gpu_memory_total_bytes gauge",
    ] {
        assert!(scraped.lines().any(|told| told.trim_end_matches(".0") == line), "{line}: {scraped}");
    }
    assert!(!scraped.contains("warmd_gpu_power_watts"), "nobody knows it: {scraped}");
    assert!(followed.tasks.shutdown(DEADLINE).await);
}

#[tokio::test]
async fn a_program_that_ends_is_started_again() {
    let script = format!(
        "test -e \"$0.ran\" && {{ echo '{}'; sleep 1000; }}; touch \"$0.ran\"; echo '{}'",
        line(0, 2),
        line(0, 1)
    );
    let fake = Fake::new(&script);
    let followed = Followed::new(&fake.section());
    followed.until(|table| used(table, 0) == Some(1)).await;
    followed.until(|table| used(table, 0) == Some(2)).await;
    assert!(followed.tasks.shutdown(DEADLINE).await);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_is_silent_for_three_intervals_is_given_up() {
    let fake = Fake::new("sleep 1000");
    let (mut lines, begin) = (asking(&fake.path()).lines().unwrap(), tokio::time::Instant::now());
    assert!(!read(&mut lines, &Gpus::default()).await);
    assert!(begin.elapsed() >= 3 * EVERY);
}

#[tokio::test]
async fn without_the_program_or_where_it_is_not_wanted_nothing_runs_and_nothing_is_told() {
    let fake = Fake::new(&format!("echo '{}'", line(0, 1)));
    let absent = GpuSection { enabled: true, program: Some(fake.0.path().join("other")) };
    let unwanted = GpuSection { enabled: false, ..fake.section() };
    for section in [absent, unwanted] {
        let followed = Followed::new(&section);
        assert!(followed.tasks.is_empty() && followed.gpus.now().is_empty());
        assert!(!followed.scrape().contains("warmd_gpu"), "no head without a series");
    }
}

#[test]
fn a_gpu_of_which_nothing_is_heard_for_three_intervals_is_forgotten() {
    let (mut table, begin) = (Table::default(), Instant::now());
    let put = |table: &mut Table, index, at| table.put(Reading::parse(&line(index, 1)).unwrap(), at);
    put(&mut table, 0, begin);
    put(&mut table, 1, begin + EVERY);
    let told = |table: &Table, at| table.at(at).map(|reading| reading.gpu.index).collect::<Vec<_>>();
    assert_eq!(told(&table, begin + 3 * EVERY - Duration::from_millis(1)), [0, 1]);
    assert_eq!(told(&table, begin + 3 * EVERY), [1]);
    put(&mut table, 0, begin + 3 * EVERY);
    assert_eq!(told(&table, begin + 3 * EVERY), [0, 1]);
    assert_eq!(told(&table, begin + 9 * EVERY), [0u8; 0]);
}
