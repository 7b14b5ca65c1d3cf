//! The fields of a job document that the relay knows, in the order it writes them.
//!
//! Knows their names, not their values. Parser, writer and schema all take their list from here.
//!
//! Invariant: `Field::ALL[f as usize] == f`.

macro_rules! fields {
    ($($field:ident = $name:literal,)+) => {
        /// A field of a job document that has a meaning to the relay.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Field {
            $($field,)+
        }

        impl Field {
            /// Every known field, in the order of the canonical text.
            pub(super) const ALL: &[Self] = &[$(Self::$field,)+];

            /// The name on the wire.
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$field => $name,)+
                }
            }

            /// The field called `name`, if the relay knows one.
            pub(super) fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$field),)+
                    _ => None,
                }
            }
        }
    };
}

fields! {
    JobId = "job_id",
    Owner = "owner",
    Status = "status",
    StatusDetail = "status_detail",
    Attempt = "attempt",
    Kind = "kind",
    Progress = "progress",
    Current = "current",
    Total = "total",
    Unit = "unit",
    Stage = "stage",
    Message = "message",
    EtaSeconds = "eta_seconds",
    EtaEstimated = "eta_estimated",
    Tasks = "tasks",
    Result = "result",
    ResultUrl = "result_url",
    Error = "error",
    ParentId = "parent_id",
    Weight = "weight",
    CreatedAt = "created_at",
    UpdatedAt = "updated_at",
    Ts = "ts",
    Meta = "meta",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name_and_stands_at_its_place() {
        for (at, field) in Field::ALL.iter().enumerate() {
            assert_eq!(*field as usize, at);
            assert_eq!(Field::named(field.as_str()), Some(*field));
        }
        assert_eq!(Field::named("Status"), None);
    }
}
