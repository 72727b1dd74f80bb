//! iroh-blobs as its own sendme program uses it: import a tree as a collection, fetch it over one connection, export the files.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};
use iroh_blobs::api::Store;
use iroh_blobs::api::blobs::{AddPathOptions, ExportMode, ExportOptions, ImportMode};
use iroh_blobs::format::collection::Collection;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::ticket::BlobTicket;
use iroh_blobs::{ALPN, BlobFormat, BlobsProtocol, Hash};
use serde_json::json;

use crate::report;

/// Larger flow control windows than the library's own end its connection here: "too many gaps in stream buffer".
async fn endpoint() -> Result<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled);
    Ok(builder.clear_ip_transports().bind_addr("127.0.0.1:0")?.bind().await?)
}

/// Files that are imported or exported at a time.
const PARALLEL: usize = 8;

pub async fn provide(dir: &Path, store: &Path, ready: &Path) -> Result<()> {
    let begin = Instant::now();
    let store = FsStore::load(store).await?;
    let (collection, bytes) = import(&store, &dir.canonicalize()?).await?;
    let files = collection.len();
    let tag = collection.store(&store).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let endpoint = endpoint().await?;
    let router = Router::builder(endpoint).accept(ALPN, BlobsProtocol::new(&store, None)).spawn();
    let endpoint = router.endpoint();
    let addrs = endpoint.bound_sockets().into_iter().map(TransportAddr::Ip);
    let addr = EndpointAddr::from_parts(endpoint.id(), addrs);
    report::print(json!({ "seconds": seconds, "files": files, "bytes": bytes }), false);
    report::ready(ready, &BlobTicket::new(addr, tag.hash(), BlobFormat::HashSeq).to_string())?;
    std::future::pending().await
}

async fn import(store: &Store, root: &Path) -> Result<(Collection, u64)> {
    let mut files = Vec::new();
    list(root, &mut files)?;
    let bytes = files.iter().map(|(_, size)| size).sum();
    let mut imported: Vec<_> = stream::iter(files)
        .map(|(path, _)| async move {
            let name = path.strip_prefix(root)?.to_str().context("a name that is not UTF-8")?.to_owned();
            let options = AddPathOptions { path, mode: ImportMode::TryReference, format: BlobFormat::Raw };
            anyhow::Ok((name, store.blobs().add_path_with_opts(options).temp_tag().await?))
        })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await?;
    imported.sort_by(|a, b| a.0.cmp(&b.0));
    let collection = imported.iter().map(|(name, tag)| (name.clone(), tag.hash())).collect();
    // The collection is stored within the lifetime of this process: the blobs may not be collected meanwhile.
    std::mem::forget(imported);
    Ok((collection, bytes))
}

fn list(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

pub async fn fetch(ticket: &Path, into: &Path, store: &Path) -> Result<()> {
    let begin = Instant::now();
    let ticket: BlobTicket = fs::read_to_string(ticket)?.parse()?;
    let store = FsStore::load(store).await?;
    let endpoint = endpoint().await?;
    let connection = endpoint.connect(ticket.addr().clone(), ALPN).await?;
    let local = store.remote().local(ticket.hash_and_format()).await?;
    let stats = store.remote().execute_get(connection, local.missing()).complete().await?;
    let fetched = begin.elapsed().as_secs_f64();

    let collection = Collection::load(ticket.hash(), &*store).await?;
    let mut made = HashSet::new();
    let mut names: HashMap<Hash, usize> = HashMap::new();
    for (name, hash) in collection.iter() {
        let parent = into.join(name).parent().context("a name without a directory")?.to_owned();
        if made.insert(parent.clone()) {
            fs::create_dir_all(parent)?;
        }
        *names.entry(*hash).or_default() += 1;
    }
    let (store, names) = (&store, &names);
    let bytes: u64 = stream::iter(collection.iter().cloned().collect::<Vec<_>>())
        .map(|(name, hash)| async move {
            // A blob moves out of the store once only.
            let mode = if names[&hash] == 1 { ExportMode::TryReference } else { ExportMode::Copy };
            let options = ExportOptions { hash, target: into.join(name), mode };
            anyhow::Ok(store.blobs().export_with_opts(options).finish().await?)
        })
        .buffer_unordered(PARALLEL)
        .try_fold(0, |sum, bytes| async move { Ok(sum + bytes) })
        .await?;
    let seconds = begin.elapsed().as_secs_f64();
    report::print(
        json!({
            "seconds": seconds, "fetch_seconds": fetched, "export_seconds": seconds - fetched,
            "bytes": bytes, "wire_bytes": stats.total_bytes_read(),
        }),
        false,
    );
    endpoint.close().await;
    Ok(())
}
