//! The dialects that are part of the binary.

/// Name and text of each file in `config/dialects/`.
pub const BUILT_IN: [(&str, &str); 5] = [
    (
        "event-dashboard",
        include_str!("../../../../config/dialects/event-dashboard.toml"),
    ),
    (
        "file-conversion",
        include_str!("../../../../config/dialects/file-conversion.toml"),
    ),
    (
        "media-conversion",
        include_str!("../../../../config/dialects/media-conversion.toml"),
    ),
    (
        "upload-notes",
        include_str!("../../../../config/dialects/upload-notes.toml"),
    ),
    (
        "video-generation",
        include_str!("../../../../config/dialects/video-generation.toml"),
    ),
];
