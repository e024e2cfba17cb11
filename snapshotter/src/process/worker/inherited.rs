//! What a worker inherits from its supervisor: descriptors, and a channel to talk with it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::Mutex,
    thread,
};

use anyhow::Context;
use tokio::sync::mpsc;

use crate::{
    process::{
        channel::{CHANNEL, Channel, ToWorker},
        descriptors::NamedDescriptor,
        resources::{CONFIG, FUSE, LISTENER, LOCK, NOTES},
    },
    sync::lock,
};

/// The descriptors that the supervisor passed.
pub(super) struct InheritedResources {
    pub(super) fuse: OwnedFd,
    pub(super) lock: OwnedFd,
    /// None once no process is to call any more.
    pub(super) listener: Mutex<Option<UnixListener>>,
    pub(super) notes: File,
    pub(super) config: File,
    pub(super) channel: Channel,
}

impl InheritedResources {
    pub(super) fn sort(mut descriptors: Vec<NamedDescriptor>) -> anyhow::Result<Self> {
        let mut take = |wanted: &str| {
            let position = descriptors.iter().position(|(name, _)| name == wanted);
            position
                .map(|position| descriptors.swap_remove(position).1)
                .with_context(|| format!("the supervisor passed no {wanted}"))
        };
        Ok(Self {
            fuse: take(FUSE)?,
            lock: take(LOCK)?,
            listener: Mutex::new(Some(take(LISTENER)?.into())),
            notes: take(NOTES)?.into(),
            config: take(CONFIG)?.into(),
            channel: take(CHANNEL)?.into(),
        })
    }

    /// A copy of the socket that containerd calls. None once the daemon is stopping.
    pub(super) fn listener(&self) -> io::Result<Option<UnixListener>> {
        lock(&self.listener).as_ref().map(UnixListener::try_clone).transpose()
    }

    /// The supervisor's messages, received by a thread of its own.
    pub(super) fn messages(&self) -> anyhow::Result<mpsc::UnboundedReceiver<ToWorker>> {
        let channel = Channel::from(self.channel.as_fd().try_clone_to_owned()?);
        let (sender, messages) = mpsc::unbounded_channel();
        let listen = move || {
            loop {
                let message = match channel.receive() {
                    Ok(Some(message)) => message,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "receive a message of the supervisor");
                        ToWorker::Unknown
                    }
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("supervisor".into()).spawn(listen)?;
        Ok(messages)
    }
}
