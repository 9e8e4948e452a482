//! The server: a thread of its own with everything in it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::desk::Desk;
use crate::guard::Token;
use crate::routes;
use crate::runs::Runs;
use crate::site::Site;

/// What is served, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder with runs.
    pub folder: PathBuf,
    /// Address to listen on.
    pub address: IpAddr,
    /// Port; 0 for any free one.
    pub port: u16,
    /// Folder of the queue that is shown, whether it is there already or not.
    pub queue: Option<PathBuf>,
    /// Takes new jobs.
    pub desk: Option<Arc<dyn Desk>>,
}

/// A server that runs until the process ends.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    token: String,
    thread: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The page without the right to change anything.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// The page with the token. What follows `#` is known to the browser alone: it is in no request.
    pub fn url_with_token(&self) -> String {
        format!("{}#token={}", self.url(), self.token)
    }

    /// Waits for its end, which does not come by itself.
    pub fn wait(self) {
        // A panic there has been told.
        let _ = self.thread.join();
    }
}

/// Starts to serve.
///
/// # Errors
/// The address is taken or not of this machine, or there is no source of random numbers or no thread.
pub fn start(options: &Options) -> io::Result<Server> {
    let listener = TcpListener::bind((options.address, options.port))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let token = Token::random()?;
    let shown = token.text().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // They read files; more at once would only take memory.
        .max_blocking_threads(4)
        .build()?;
    let (runs, queue) = (Runs::new(options.folder.clone()), options.queue.clone());
    let (desk, checking) = (options.desk.clone(), Mutex::default());
    let site = Arc::new(Site { runs, token, address, queue, desk, checking });
    let serve = move || {
        runtime.block_on(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            // It ends with the process.
            let _ = axum::serve(listener, routes::router(site)).await;
        });
    };
    let thread = std::thread::Builder::new().name("serve".into()).spawn(serve)?;
    Ok(Server { address, token: shown, thread })
}
