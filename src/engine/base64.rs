//! Base64 with padding, as Dovecot's protocols have it.

/// By their value.
pub const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends `plain`, encoded.
pub fn append(out: &mut Vec<u8>, plain: &[u8]) {
    for chunk in plain.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            if position > chunk.len() {
                out.push(b'=');
            } else {
                let index = (bits >> (18 - 6 * position)) & 63;
                out.extend(LETTERS.get(index as usize));
            }
        }
    }
}
