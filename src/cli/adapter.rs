//! `warmd adapter`: LoRA adapters, from whoever trained them to the fleet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Socket, output, publish};
use crate::adapters::{Address, Alias, BaseModel, Release};
use crate::lifecycle;
use crate::serve::Say;
use crate::serve::finetunes::{self, Finetuned, Signature, Watched};

#[derive(Debug, Subcommand)]
pub(super) enum Adapter {
    /// Sign an adapter and offer it to the fleet under an alias; again for its next version
    Publish(Publish),
    /// Publish every adapter that appears in a directory, for as long as this runs
    Watch(Watch),
}

/// What is signed beside the files.
#[derive(Debug, Args)]
struct Says {
    /// Model that it was trained on; counts where adapter_config.json names none
    #[arg(long, value_name = "MODEL")]
    base: Option<BaseModel>,
    /// Ethereum address of the only one who may use it, besides those whose scopes say so; absent: everybody
    #[arg(long, value_name = "ADDRESS")]
    owner: Option<Address>,
    /// Where it comes from, such as a training job; for people
    #[arg(long, value_name = "TEXT")]
    provenance: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// Directory with adapter_config.json and adapter_model.safetensors
    directory: PathBuf,
    /// Name that clients use as `model`
    #[arg(long, value_name = "NAME")]
    alias: Alias,
    #[command(flatten)]
    says: Says,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Directory with a directory for each adapter, named as its alias
    directory: PathBuf,
    #[command(flatten)]
    says: Says,
    /// An adapter is complete once nothing was written to it for this long
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    #[command(flatten)]
    socket: Socket,
}

/// What was published.
#[derive(Debug, Serialize)]
struct Report {
    alias: Alias,
    base: String,
    rank: u32,
    dora: bool,
    owner: Option<Address>,
    #[serde(flatten)]
    published: publish::Report,
}

impl Says {
    fn signature(self) -> Signature {
        Signature { base: self.base, owner: self.owner, provenance: self.provenance }
    }
}

impl Adapter {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Publish(command) => command.run().await,
            Self::Watch(command) => command.run().await,
        }
    }
}

/// A wrong directory is told before a missing agent.
fn existing(directory: &Path) -> anyhow::Result<PathBuf> {
    let directory = std::path::absolute(directory)?;
    let meta = directory.metadata().with_context(|| format!("read {}", directory.display()))?;
    anyhow::ensure!(meta.is_dir(), "{} is no directory", directory.display());
    Ok(directory)
}

impl Publish {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let begun = std::time::Instant::now();
        let directory = existing(&self.directory)?;
        let client = self.socket.connect().await?;
        let progress = output::Progress::new("reading");
        let reading = move |bytes| progress.bytes("reading", bytes, 0);
        let Finetuned { release, published } =
            finetunes::publish(&client, &directory, self.alias, self.says.signature(), reading).await?;
        let published = publish::report(published, begun.elapsed().as_secs_f64())?;
        if self.json {
            let Release { alias, base, rank, dora, owner, .. } = release;
            output::json(&Report { alias, base: base.to_string(), rank, dora, owner, published })?;
        } else {
            publish::show(&published)?;
            let owner = release.owner.map(|owner| format!(", for {owner} only")).unwrap_or_default();
            output::note(format!("`{}` is offered for {}{owner}", release.alias, release.base));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Watch {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let directory = existing(&self.directory)?;
        let client = self.socket.connect().await?;
        let say: Say = Arc::new(|line| output::note(output::plain(line)));
        say(&format!("adapters that appear in {} are published; ^C ends it", directory.display()));
        let watched = Watched { directory, signature: self.says.signature(), quiet: self.quiet };
        tokio::select! {
            () = watched.publish(&client, &say) => {}
            ended = lifecycle::terminated() => ended.context("wait for signals")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
