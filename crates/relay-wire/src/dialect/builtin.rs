//! The dialects that are part of the binary.

/// Name and text of each file in `builtin/`.
pub const BUILT_IN: [(&str, &str); 5] = [
    (
        "event-dashboard",
        include_str!("builtin/event-dashboard.toml"),
    ),
    (
        "file-conversion",
        include_str!("builtin/file-conversion.toml"),
    ),
    (
        "media-conversion",
        include_str!("builtin/media-conversion.toml"),
    ),
    ("upload-notes", include_str!("builtin/upload-notes.toml")),
    (
        "video-generation",
        include_str!("builtin/video-generation.toml"),
    ),
];
