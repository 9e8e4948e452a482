//! What a job's words mean to the crates that compute. `tenggat-job` knows no tensors, so the meeting point is here.

use tenggat_models::lora::Kind;
use tenggat_tensor::ops::quantise::Format;

use crate::job::{Network, NetworkKind, Qtype};

/// What the job's network adds to each layer.
pub(crate) fn kind(network: &Network) -> Kind {
    match network.kind {
        NetworkKind::Lora => Kind::LowRank(network.rank),
        NetworkKind::Lokr { factor } => Kind::Kronecker { factor },
    }
}

/// The storage format that a `qtype` names.
pub(crate) fn format(qtype: Qtype) -> Format {
    match qtype {
        Qtype::Uint(bits) => Format::Uint(bits),
        Qtype::QFloat8 => Format::QFloat8,
        Qtype::Float8 => Format::Float8,
        Qtype::QInt8 => Format::QInt8,
        Qtype::Int8 => Format::Int8,
    }
}

#[cfg(test)]
mod tests {
    use tenggat_models::hub::Repository;

    use super::*;
    use crate::job::is_repository;

    #[test]
    fn every_qtype_has_the_name_of_its_format() {
        let types =
            [Qtype::QFloat8, Qtype::Float8, Qtype::QInt8, Qtype::Int8, Qtype::Uint(2), Qtype::Uint(7)];
        for (qtype, name) in types.into_iter().zip(["qfloat8", "float8", "qint8", "int8", "uint2", "uint7"]) {
            assert_eq!(format(qtype), name.parse().unwrap(), "{name}");
        }
    }

    #[test]
    fn jobs_and_the_hub_read_the_same_names_of_repositories() {
        let names = [
            "Qwen/Qwen-Image",
            "me/lora@main",
            "me/lora@refs/pr/3",
            "a.b/c_d",
            "model",
            "/models/x",
            "./x",
            "../x",
            "a/b/c",
            "a/",
            "/b",
            "a/b@",
            "a/b@../../x",
            "~/x",
            "a/b c",
            "a/b@x/../y",
            "a/b..c",
            "a/-b",
            "ä/b",
            "",
        ];
        for name in names {
            assert_eq!(is_repository(name), Repository::parse(name).is_some(), "{name}");
        }
        assert_eq!(names.iter().filter(|name| is_repository(name)).count(), 4);
    }
}
