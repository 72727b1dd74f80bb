//! Why somebody is not let in. No text repeats anything that the client sent.

use crate::telemetry::label;

label! {
    /// The credentials do not count. As a label of metrics: a closed set.
    #[derive(thiserror::Error)]
    pub enum Denied {
        #[error("no credentials: send `Authorization: Bearer <key>`")]
        Missing,
        #[error("the Authorization header is not of the form `Bearer <token>`")]
        Scheme,
        #[error("the Authorization header is too long")]
        TooLong,
        #[error("credentials of this kind are not accepted here")]
        MethodOff,
        /// An API key that is not known or not right: which of the two is not told.
        #[error("the key is not valid")]
        Unknown,
        #[error("the token cannot be read")]
        Malformed,
        #[error("the credentials have expired")]
        Expired,
        #[error("the credentials are not valid yet: compare the clocks")]
        NotYetValid,
        #[error("the credentials are valid for longer than is accepted here")]
        TooLongLived,
        #[error("the credentials are for another service")]
        Audience,
        #[error("the token is of another issuer")]
        Issuer,
        #[error("the token's algorithm is not accepted here")]
        Algorithm,
        /// Not that of the signer whom the token names, or of a key that is not known.
        #[error("the signature is not valid")]
        Signature,
        #[error("the text was used before: sign one with a new nonce")]
        Replayed,
        #[error("too many signed texts of this address are still valid: wait until some have expired")]
        NoncesFull,
        #[error("the token was revoked")]
        Revoked,
        /// A valid signature of somebody who is not on the list.
        #[error("this account is not admitted")]
        Stranger,
        #[error("the token names no tenant")]
        NoTenant,
        /// Call [`authenticate_request`](super::Authenticator::authenticate_request) with the request's body.
        #[error("the text is signed for one request, which is not accepted here: sign one for a session")]
        NeedsRequest,
        #[error("the text is signed for another request")]
        OtherRequest,
    }
}

impl Denied {
    /// HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::NoncesFull => 429,
            _ => 401,
        }
    }
}

/// The caller is known and may not use the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    #[error("you are not the owner of this model")]
    Forbidden,
    #[error("the model does not exist")]
    NotFound,
}

impl Refused {
    /// HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Forbidden => 403,
            Self::NotFound => 404,
        }
    }
}
