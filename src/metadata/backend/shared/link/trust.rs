//! The documents of trust in the store: one hash, of which the stamp tells whether the rest has changed.

use redis::cmd;

use super::Link;
use crate::identity::trust::Documents;
use crate::metadata::backend::shared::StoreError;
use crate::protocol::metadata::{MAX_MESSAGE, decode_trust, encode_trust};

/// Sets both fields if the stamp is still the one that the caller has read.
const PUT: &str = "if (redis.call('HGET', KEYS[1], 'stamp') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'stamp', ARGV[2], 'documents', ARGV[3])
return 1";

impl Link {
    /// `None` if there are no documents.
    pub(in crate::metadata::backend::shared) async fn trust_stamp(&self) -> Result<Option<String>, StoreError> {
        let mut call = cmd("HGET");
        call.arg(&self.keys.trust).arg("stamp");
        self.ask(&call).await
    }

    pub(in crate::metadata::backend::shared) async fn trust(&self) -> Result<Documents, StoreError> {
        let mut call = cmd("HGET");
        call.arg(&self.keys.trust).arg("documents");
        let bytes: Option<Vec<u8>> = self.ask(&call).await?;
        let bytes = bytes.unwrap_or_default();
        let documents = (bytes.len() <= MAX_MESSAGE).then(|| decode_trust(&bytes).ok()).flatten();
        documents.ok_or(StoreError::Damaged("a document of trust"))
    }

    /// False if somebody else was first.
    pub(in crate::metadata::backend::shared) async fn put_trust(
        &self,
        read: Option<&str>,
        stamp: &str,
        documents: &Documents,
    ) -> Result<bool, StoreError> {
        let mut call = cmd("EVAL");
        call.arg(PUT).arg(1).arg(&self.keys.trust);
        call.arg(read.unwrap_or_default()).arg(stamp);
        call.arg(encode_trust(documents));
        self.ask(&call).await
    }
}
