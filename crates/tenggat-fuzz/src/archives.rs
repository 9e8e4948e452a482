//! Archives of a contest.

pub mod archive {
    //! Unpacks an archive and looks that nothing was written outside of its folder.

    use std::fs;
    use std::io::{Cursor, Write};

    use tenggat_train::contest;
    use zip::CompressionMethod;
    use zip::write::{SimpleFileOptions, ZipWriter};

    use crate::scratch::Scratch;

    /// See the module.
    ///
    /// # Panics
    /// Something was written outside, or a folder was made inside.
    pub fn run(bytes: &[u8]) {
        let scratch = Scratch::new();
        let path = scratch.write("a.zip", bytes);
        let into = scratch.path("out");
        let _ = contest::unpack(&path, &into);
        let mut beside: Vec<_> = fs::read_dir(scratch.folder()).expect("its folder").flatten().collect();
        beside.retain(|entry| entry.path() != path && entry.path() != into);
        assert!(beside.is_empty(), "outside: {beside:?}");
        let mut inside = fs::read_dir(&into).into_iter().flatten().flatten();
        assert!(inside.all(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())));
    }

    /// Archives with names of all sorts, stored and deflated.
    pub fn seeds() -> Vec<Vec<u8>> {
        [CompressionMethod::Stored, CompressionMethod::Deflated].map(archive).into()
    }

    fn archive(method: CompressionMethod) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(method);
        for name in ["train_data/a.png", "train_data/a.txt", "x/../../b.png", "/c.jpg", "train_data/.d.png"] {
            writer.start_file(name, options).expect("an entry");
            writer.write_all(&[b'a'; 60]).expect("an entry");
        }
        writer.finish().expect("an archive").into_inner()
    }
}
