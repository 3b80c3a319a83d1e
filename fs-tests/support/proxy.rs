//! A recording HTTP proxy between plyfs and a registry: it forwards everything, and records how much of each blob went
//! through and when.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The piece size in which response bodies are forwarded, in bytes.
const CHUNK: usize = 64 << 10;

/// The fetch of a blob or of a part of one.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// Its digest.
    pub blob: String,
    /// Where the part begins.
    pub from: usize,
    /// The number of bytes sent to the client.
    pub sent: usize,
    /// Whether another fetch of the same blob was under way when this one began.
    pub overlaps: bool,
    /// Whether everything but the last piece has been sent, or the fetch has ended.
    ended: bool,
}

#[derive(Default)]
struct State {
    fetches: Vec<Fetch>,
    connections: usize,
}

/// A proxy on a free port of this machine. It ends with the test's process.
pub struct Proxy {
    /// `127.0.0.1:PORT`.
    pub host: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts a proxy for the registry at `upstream`, which pauses for `pause` after every piece of a body.
    pub fn start(upstream: &str, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::<Mutex<State>>::default();
        let (shared, upstream) = (state.clone(), upstream.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, upstream) = (shared.clone(), upstream.clone());
                state.lock().unwrap().connections += 1;
                thread::spawn(move || {
                    // An error is fine: the client may have been killed.
                    let _gone = forward(stream, &upstream, pause, &state);
                    state.lock().unwrap().connections -= 1;
                });
            }
        });
        Self { host, state }
    }

    /// Waits until all connections have ended; returns the fetches after the first `before`.
    #[track_caller]
    pub fn wait_for_fetches(&self, before: usize) -> Vec<Fetch> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let state = self.state.lock().unwrap();
            if state.connections == 0 {
                return state.fetches[before..].to_vec();
            }
            assert!(Instant::now() < until, "{} connections do not end", state.connections);
            drop(state);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The number of fetches so far.
    pub fn count(&self) -> usize {
        self.state.lock().unwrap().fetches.len()
    }

    /// The blobs that two clients fetched at the same time.
    pub fn overlaps(&self) -> BTreeSet<String> {
        let state = self.state.lock().unwrap();
        state.fetches.iter().filter(|fetch| fetch.overlaps).map(|fetch| fetch.blob.clone()).collect()
    }
}

/// Forwards one request on one connection.
fn forward(client: TcpStream, upstream: &str, pause: Duration, state: &Mutex<State>) -> io::Result<()> {
    let mut first = [0];
    // Refuse TLS clients.
    if client.peek(&mut first)? == 0 || first[0] == 0x16 {
        return Ok(());
    }
    // What the client has not read yet must not count as sent.
    rustix::net::sockopt::set_socket_send_buffer_size(&client, CHUNK)?;
    let request = head(&mut BufReader::new(client.try_clone()?))?;
    let mut server = TcpStream::connect(upstream)?;
    write!(server, "{}", request.join("\r\n") + "\r\nConnection: close\r\n\r\n")?;
    let mut server = BufReader::with_capacity(CHUNK, server);
    let answer = head(&mut server)?;
    let number = record_fetch(&request, &answer, state);
    let done = forward_body(client, server, &answer, pause, &mut |sent, ended| {
        if let Some(number) = number {
            let fetch = &mut state.lock().unwrap().fetches[number];
            (fetch.sent, fetch.ended) = (fetch.sent + sent, fetch.ended || ended);
        }
    });
    if let Some(number) = number {
        state.lock().unwrap().fetches[number].ended = true;
    }
    done
}

/// Reads the head of a request or response, without the headers about the connection.
fn head(from: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => return Ok(lines),
            line if line.to_ascii_lowercase().starts_with("connection:") => {}
            line => lines.push(line.to_owned()),
        }
    }
}

fn value<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let (_, value) =
        head.iter().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value.trim())
}

/// Records a fetch if the request is for a blob. Returns its number.
fn record_fetch(request: &[String], answer: &[String], state: &Mutex<State>) -> Option<usize> {
    let path = request[0].strip_prefix("GET ")?.split(' ').next()?;
    let (_, blob) = path.split_once("/blobs/")?;
    let is_part = answer[0].contains(" 206");
    if !is_part && !answer[0].contains(" 200") {
        return None;
    }
    let from = value(request, "range").filter(|_| is_part).and_then(|range| {
        let (from, _) = range.strip_prefix("bytes=")?.split_once('-')?;
        from.parse().ok()
    });
    let mut state = state.lock().unwrap();
    let overlaps = state.fetches.iter().any(|fetch| fetch.blob == blob && !fetch.ended);
    state.fetches.push(Fetch { blob: blob.to_owned(), from: from.unwrap_or(0), sent: 0, overlaps, ended: false });
    Some(state.fetches.len() - 1)
}

/// Forwards a response body. Calls `tell` with the amount sent, and before the last piece that it is the last: a client
/// that has everything may send its next request before this thread has recorded the end.
fn forward_body(
    mut client: TcpStream,
    mut server: BufReader<TcpStream>,
    answer: &[String],
    pause: Duration,
    tell: &mut dyn FnMut(usize, bool),
) -> io::Result<()> {
    let mut left = value(answer, "content-length").and_then(|n| n.parse::<usize>().ok());
    write!(client, "{}", answer.join("\r\n") + "\r\nConnection: close\r\n\r\n")?;
    let mut piece = vec![0; CHUNK];
    loop {
        let n = server.read(&mut piece)?;
        if n == 0 {
            return Ok(());
        }
        left = left.map(|left| left.saturating_sub(n));
        tell(0, left == Some(0));
        client.write_all(&piece[..n])?;
        tell(n, false);
        thread::sleep(pause);
    }
}
