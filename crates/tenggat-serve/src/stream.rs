//! Bodies that are sent bit by bit: server-sent events, and files of any size.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::queue;
use crate::runs::Listed;
use crate::site::Site;

/// Time between two looks for news.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks after which the list is sent although nothing is new but the time: a lost connection is noticed, and
/// what is spent of a budget is shown.
const SIGN_OF_LIFE: u32 = 15;
/// Bytes of a file that are read at a time.
const CHUNK: usize = 1 << 16;

struct Parts(Receiver<Bytes>);

impl futures_core::Stream for Parts {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|part| part.map(Ok))
    }
}

/// Whether the list of runs tells more than before.
fn has_news(listed: &[Listed], before: &[Listed]) -> bool {
    let is_new = |(now, before): (&Listed, &Listed)| {
        now.id != before.id || now.overview.is_news_after(&before.overview)
    };
    listed.len() != before.len() || listed.iter().zip(before).any(is_new)
}

/// The queue and the list of runs now, and again whenever they change, until the reader is gone.
pub(crate) fn events(site: Arc<Site>) -> Body {
    let (sender, receiver) = channel(4);
    tokio::spawn(async move {
        let (mut told, mut told_queue, mut quiet) = (None::<Vec<Listed>>, None, 0);
        loop {
            let own = Arc::clone(&site);
            let look = move || (own.runs.list(), queue::listed(&own));
            let Ok((listed, queue)) = tokio::task::spawn_blocking(look).await else { return };
            quiet += 1;
            if quiet >= SIGN_OF_LIFE || told.as_ref().is_none_or(|told| has_news(&listed, told)) {
                quiet = 0;
                let Ok(json) = serde_json::to_string(&listed) else { return };
                let text = format!("event: runs\ndata: {json}\n\n");
                if sender.send(text.into()).await.is_err() {
                    return;
                }
                told = Some(listed);
            }
            if told_queue.as_ref() != Some(&queue) {
                let Ok(json) = serde_json::to_string(&queue) else { return };
                if sender.send(format!("event: queue\ndata: {json}\n\n").into()).await.is_err() {
                    return;
                }
                told_queue = Some(queue);
            }
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    });
    Body::from_stream(Parts(receiver))
}

/// A file, read no faster than it is sent. A reader that stalls holds a task, which is cheap, and no thread:
/// of those there are few.
pub(crate) fn file(file: File) -> Body {
    let (sender, receiver) = channel(2);
    tokio::spawn(send(file, sender));
    Body::from_stream(Parts(receiver))
}

async fn send(mut file: File, sender: Sender<Bytes>) {
    while let Ok(place) = sender.reserve().await {
        let read = tokio::task::spawn_blocking(move || read(&mut file).map(|chunk| (file, chunk)));
        let Ok(Some((rest, chunk))) = read.await else { return };
        file = rest;
        place.send(chunk);
    }
}

/// The next bytes of a file; `None` at its end.
fn read(file: &mut File) -> Option<Bytes> {
    let mut chunk = vec![0; CHUNK];
    let length = file.read(&mut chunk).ok().filter(|length| *length > 0)?;
    chunk.truncate(length);
    Some(chunk.into())
}
