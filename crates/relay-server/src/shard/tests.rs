//! One connection with paused time.
#[allow(unused)]
pub(super) fn fault(_: &[u8]) {}
#[allow(unused)]
pub(super) fn fault_in_fan_out(
    _: &super::connection::Connection,
    _: &relay_core::publication::Publication,
) {
}
