//! Fetching a model from a hub, over a real port.

mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use server::{Behaviour, Server, sha256};
use tempfile::TempDir;
use tenggat_models::hub::{Options, Progress, locate};
use tenggat_models::{Interrupt, Result, model_folder};

/// A whole model of small files, with the transformer in two large shards.
fn files() -> BTreeMap<String, Vec<u8>> {
    let index = json!({
        "_class_name": "QwenImagePipeline",
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    });
    let weights = |name: &str, len: usize| {
        let data: Vec<u8> = (0..len).map(|i| (i * i % 251) as u8).collect();
        let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![len], &data).unwrap();
        safetensors::serialize([(name, tensor)], None).unwrap()
    };
    let shards = json!({"weight_map": {"a": "d-1-of-2.safetensors", "b": "d-2-of-2.safetensors"}});
    let text = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        ("model_index.json".into(), text(&index.to_string())),
        ("scheduler/scheduler_config.json".into(), text("{}")),
        ("text_encoder/config.json".into(), text("{\"a\": 1}")),
        ("text_encoder/model.safetensors".into(), weights("t", 50_000)),
        ("tokenizer/merges.txt".into(), text("#version: 0.2\n")),
        ("tokenizer/tokenizer_config.json".into(), text("{\"b\": 2}")),
        ("tokenizer/vocab.json".into(), text("{\"c\": 3}")),
        ("transformer/config.json".into(), text("{\"d\": 4}")),
        ("transformer/d-1-of-2.safetensors".into(), weights("a", 900_000)),
        ("transformer/d-2-of-2.safetensors".into(), weights("b", 70_000)),
        ("transformer/diffusion_pytorch_model.safetensors.index.json".into(), text(&shards.to_string())),
        ("vae/config.json".into(), text("{\"e\": 5}")),
        ("vae/diffusion_pytorch_model.safetensors".into(), weights("v", 3000)),
        // What nobody needs is not fetched.
        ("README.md".into(), text("read me")),
        ("transformer/diffusion_pytorch_model.bin".into(), vec![0; 5000]),
    ])
}

struct Case {
    server: Server,
    options: Options,
    /// Keeps the cache until the test ends.
    _cache: TempDir,
}

impl Case {
    fn new(change: impl FnOnce(&mut Behaviour)) -> Self {
        let mut behaviour = Behaviour { files: files(), ..Behaviour::default() };
        change(&mut behaviour);
        let (server, cache) = (Server::start(behaviour), tempfile::tempdir().unwrap());
        let options = Options {
            endpoint: server.endpoint.clone(),
            cache: cache.path().join("hub"),
            token: None,
            offline: false,
            retry_pause: Duration::from_millis(1),
            interrupt: Interrupt::default(),
        };
        Case { server, options, _cache: cache }
    }

    fn fetch(&self) -> Result<PathBuf> {
        locate("org/model", &self.options, &|_| {})
    }

    fn error(&self) -> String {
        self.fetch().unwrap_err().to_string()
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.server.behaviour.lock().unwrap());
    }

    fn repository(&self) -> PathBuf {
        self.options.cache.join("models--org--model")
    }

    fn blob(&self, path: &str) -> PathBuf {
        self.repository().join("blobs").join(sha256(&files()[path]))
    }

    /// What a killed process leaves of the large shard.
    fn leave(&self, bytes: &[u8]) -> PathBuf {
        let left = self.blob(SHARD).with_extension("incomplete");
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, bytes).unwrap();
        left
    }
}

fn expect_whole(folder: &Path) {
    model_folder::check(folder).unwrap();
    for (path, bytes) in files() {
        let needed = !path.ends_with(".md") && !path.ends_with(".bin");
        assert_eq!(std::fs::read(folder.join(&path)).ok(), needed.then_some(bytes), "{path}");
    }
}

const SHARD: &str = "transformer/d-1-of-2.safetensors";

#[test]
fn fetches_what_a_model_needs_into_the_shared_layout() {
    let case = Case::new(|_| {});
    let progress = Mutex::new(Vec::new());
    let note = |p: Progress<'_>| progress.lock().unwrap().push((p.done_bytes, p.total_bytes));
    let folder = locate("org/model", &case.options, &note).unwrap();
    expect_whole(&folder);
    let commit = case.server.commit();
    assert_eq!(folder, case.repository().join("snapshots").join(&commit));
    assert_eq!(std::fs::read_to_string(case.repository().join("refs/main")).unwrap(), commit);
    assert!(case.blob(SHARD).is_file());
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(folder.join(SHARD)).unwrap(),
        Path::new("../../../blobs").join(sha256(&files()[SHARD]))
    );
    let progress = progress.into_inner().unwrap();
    let total = progress[0].1;
    assert!(total > 1_000_000 && progress.iter().all(|p| p.1 == total && p.0 <= total), "{total}");
    assert!(progress.iter().any(|p| p.0 == total));

    // The second time one question is enough: has the branch moved?
    case.server.take_seen();
    assert_eq!(case.fetch().unwrap(), folder);
    assert_eq!(case.server.take_seen().len(), 1);
    // A commit cannot move.
    assert_eq!(locate(&format!("org/model@{commit}"), &case.options, &|_| {}).unwrap(), folder);
    assert!(case.server.take_seen().is_empty());
}

#[test]
fn a_new_commit_fetches_only_what_changed() {
    let case = Case::new(|_| {});
    let before = case.fetch().unwrap();
    case.server.take_seen();
    case.change(|b| {
        b.commit = Some("f".repeat(40));
        b.files.insert("vae/config.json".into(), b"{\"new\": 1}".to_vec());
    });
    let after = case.fetch().unwrap();
    assert_ne!(after, before);
    assert_eq!(std::fs::read(after.join("vae/config.json")).unwrap(), b"{\"new\": 1}");
    let fetched: Vec<_> = case.server.take_seen().into_iter().filter(|s| s.method == "GET").collect();
    assert!(fetched.len() == 1 && fetched[0].path.ends_with("vae/config.json"), "{fetched:?}");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let case = Case::new(|b| b.cut = (1000, 3));
    expect_whole(&case.fetch().unwrap());
    let seen = case.server.take_seen().into_iter().filter(|s| s.content_server);
    let ranges: Vec<String> = seen.filter_map(|s| s.range).collect();
    assert!(ranges.len() == 3 && ranges.iter().all(|r| r.ends_with("000-")), "{ranges:?}");
}

#[test]
fn a_later_fetch_goes_on_with_what_an_earlier_one_left() {
    let case = Case::new(|_| {});
    let left = case.leave(&files()[SHARD][..300_000]);
    expect_whole(&case.fetch().unwrap());
    let seen = case.server.take_seen();
    let shard: Vec<_> = seen.iter().filter(|s| s.content_server && s.path.ends_with(SHARD)).collect();
    assert_eq!(shard.len(), 1);
    assert_eq!(shard[0].range.as_deref(), Some("bytes=300000-"));
    assert!(!left.exists());
}

#[test]
fn what_has_arrived_is_kept_when_the_connection_is_lost_for_good() {
    let case = Case::new(|b| b.cut = (0, usize::MAX));
    let left = case.leave(&files()[SHARD][..300_000]);
    let error = case.error();
    assert!(error.contains("run again to resume"), "{error}");
    assert_eq!(std::fs::read(left).unwrap(), files()[SHARD][..300_000]);
    case.change(|b| b.cut = (0, 0));
    expect_whole(&case.fetch().unwrap());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let case = Case::new(|b| (b.cut, b.ignores_ranges) = ((1000, 2), true));
    expect_whole(&case.fetch().unwrap());
}

#[test]
fn damaged_leftovers_are_thrown_away() {
    for leftover in [vec![7; 300_000], vec![7; 2_000_000], vec![7; files()[SHARD].len()]] {
        let case = Case::new(|_| {});
        case.leave(&leftover);
        expect_whole(&case.fetch().unwrap());
    }
}

#[test]
fn a_damaged_content_is_refused_and_not_kept() {
    let case = Case::new(|b| b.damages = true);
    let error = case.error();
    assert!(error.contains("SHA-256") && error.contains("safetensors"), "{error}");
    assert!(!case.blob(SHARD).exists());
    case.change(|b| b.damages = false);
    expect_whole(&case.fetch().unwrap());
}

/// The ETag of a small file is git's name of its content. Source: `git hash-object` of these bytes.
#[test]
fn a_damaged_small_file_is_refused_and_not_kept() {
    assert_eq!(server::git_id(b"test content\n"), "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
    for path in ["model_index.json", "vae/config.json", "tokenizer/merges.txt"] {
        let case = Case::new(|b| b.damages_small = Some(path.into()));
        let error = case.error();
        assert!(error.contains("SHA-1") && error.contains(path), "{error}");
        assert!(!case.repository().join("blobs").join(server::git_id(&files()[path])).exists());
        // What is whole is kept, and an honest hub completes it.
        case.change(|b| b.damages_small = None);
        expect_whole(&case.fetch().unwrap());
    }
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let mut case = Case::new(|b| b.token = Some("secret".into()));
    let error = case.error();
    assert!(error.contains("401") && error.contains("HF_TOKEN"), "{error}");
    case.options.token = Some("wrong".into());
    assert!(case.error().contains("the token has no access"), "{}", case.error());
    case.server.take_seen();
    case.options.token = Some("secret".into());
    expect_whole(&case.fetch().unwrap());
    for request in case.server.take_seen() {
        assert_eq!(request.authorization.is_some(), !request.content_server, "{request:?}");
    }
}

#[test]
fn offline_takes_what_is_there_and_names_what_is_not() {
    let mut case = Case::new(|_| {});
    case.options.offline = true;
    let error = case.error();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("org/model"), "{error}");
    case.options.offline = false;
    let folder = case.fetch().unwrap();
    case.server.take_seen();
    case.options.offline = true;
    assert_eq!(case.fetch().unwrap(), folder);
    std::fs::remove_file(case.blob(SHARD)).unwrap();
    assert!(case.error().contains(SHARD), "{}", case.error());
    assert!(case.server.take_seen().is_empty());
}

#[test]
fn a_hub_that_does_not_answer_matters_only_if_something_is_missing() {
    let mut case = Case::new(|_| {});
    let folder = case.fetch().unwrap();
    // Nothing listens on port 9.
    case.options.endpoint = "http://127.0.0.1:9".into();
    assert_eq!(case.fetch().unwrap(), folder);
    std::fs::remove_file(case.blob(SHARD)).unwrap();
    assert!(case.error().contains("http://127.0.0.1:9"), "{}", case.error());
}

#[test]
fn follows_a_renamed_repository() {
    let case = Case::new(|b| b.renamed = true);
    expect_whole(&locate("org/old", &case.options, &|_| {}).unwrap());
}

#[test]
fn names_what_does_not_exist() {
    let case = Case::new(|_| {});
    let error = locate("org/typo", &case.options, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("org/typo") && error.contains("404"), "{error}");
    let error = locate("./no/such/folder", &case.options, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
    case.change(|b| drop(b.files.remove("transformer/d-2-of-2.safetensors")));
    assert!(case.error().contains("d-2-of-2.safetensors"), "{}", case.error());
}

#[test]
fn an_unsupported_architecture_is_refused_before_its_weights_are_fetched() {
    let case = Case::new(|b| {
        let index = br#"{"_class_name": "FluxPipeline"}"#.to_vec();
        b.files.insert("model_index.json".into(), index);
    });
    let error = case.error();
    assert!(error.contains("FluxPipeline") && error.contains("QwenImagePipeline"), "{error}");
    assert!(case.server.take_seen().iter().all(|s| s.path.ends_with("model_index.json")));
}

#[test]
fn an_index_cannot_name_files_outside_the_model() {
    let case = Case::new(|b| {
        let index = br#"{"weight_map": {"a": "../../../../outside.safetensors"}}"#.to_vec();
        b.files.insert("transformer/diffusion_pytorch_model.safetensors.index.json".into(), index);
    });
    assert!(case.error().contains("outside"), "{}", case.error());
}

#[test]
fn a_local_folder_is_taken_as_it_is() {
    let (case, folder) = (Case::new(|_| {}), tempfile::tempdir().unwrap());
    let name = folder.path().to_str().unwrap();
    assert_eq!(locate(name, &case.options, &|_| {}).unwrap(), folder.path());
    assert!(case.server.take_seen().is_empty());
}

#[test]
fn single_files_are_fetched_into_the_same_cache() {
    use tenggat_models::hub::locate_file;
    let case = Case::new(|_| {});
    let fetch = |name: &str| locate_file(name, &case.options, &|_| {});
    let name = format!("org/model/{SHARD}");
    let path = fetch(&name).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), files()[SHARD]);
    assert!(path.starts_with(case.repository()));
    // The model that is fetched afterwards finds it.
    case.server.take_seen();
    expect_whole(&case.fetch().unwrap());
    assert!(case.server.take_seen().iter().all(|s| !s.content_server || !s.path.contains(SHARD)));
    let offline = Options { offline: true, ..case.options.clone() };
    assert_eq!(locate_file(&name, &offline, &|_| {}).unwrap(), path);
    let error = locate_file("org/model/none.bin", &offline, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("none.bin") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let error = fetch("org/model/none.bin").unwrap_err().to_string();
    assert!(error.contains("no `none.bin`"), "{error}");
    assert!(fetch("none.bin").unwrap_err().to_string().contains("no such file"));
}

#[test]
fn uploads_go_to_the_store_and_become_one_commit() {
    use tenggat_models::hub::{Repository, Upload, upload};
    let case = Case::new(|behaviour| behaviour.token = Some("secret".into()));
    let folder = tempfile::tempdir().unwrap();
    let lora = folder.path().join("fox.safetensors");
    std::fs::write(&lora, vec![7; 300_000]).unwrap();
    let repository = Repository::parse("org/fox").unwrap();
    let files = [Upload::File("fox.safetensors", &lora), Upload::Text("README.md", "# Fox")];
    let error = upload(&repository, &files, true, &case.options).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    let wrong = Options { token: Some("other".into()), ..case.options.clone() };
    let error = upload(&repository, &files, true, &wrong).unwrap_err().to_string();
    assert!(error.contains("does the token have write access"), "{error}");
    case.server.take_seen();

    let options = Options { token: Some("secret".into()), ..case.options.clone() };
    upload(&repository, &files, true, &options).unwrap();
    let seen = case.server.take_seen();
    let oid = sha256(&vec![7; 300_000]);
    let requests: Vec<String> = seen.iter().map(|s| format!("{} {}", s.method, s.path)).collect();
    let expected = [
        "POST /api/repos/create".to_string(),
        "POST /org/fox.git/info/lfs/objects/batch".into(),
        format!("PUT /store/{oid}"),
        "POST /api/models/org/fox/commit/main".into(),
    ];
    assert_eq!(requests, expected);
    let created: serde_json::Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!((&created["name"], &created["private"]), (&"fox".into(), &true.into()));
    // The token stays with the hub.
    assert_eq!((seen[2].authorization.as_deref(), seen[2].body.len()), (None, 300_000));
    let lines: Vec<serde_json::Value> = String::from_utf8(seen[3].body.clone())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let keys: Vec<&str> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["header", "lfsFile", "file"]);
    assert_eq!((&lines[1]["value"]["oid"], &lines[1]["value"]["size"]), (&oid.into(), &300_000.into()));
    assert_eq!(lines[2]["value"]["content"], "IyBGb3g=");
}

#[test]
fn a_fetch_ends_when_asked_and_goes_on_later() {
    let case = Case::new(|_| {});
    let interrupt = Interrupt::default();
    let options = Options { interrupt: interrupt.clone(), ..case.options.clone() };
    // Asked for as soon as the first bytes are here.
    let error = locate("org/model", &options, &|_| interrupt.request()).unwrap_err();
    assert!(error.is_interrupted(), "{error}");
    let folder = case.fetch().unwrap();
    assert!(model_folder::check(&folder).is_ok());
}
