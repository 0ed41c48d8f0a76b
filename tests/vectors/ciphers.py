#!/usr/bin/env python3
"""Prints ciphers.json: packets as SSH encrypts them, computed without threadline, libssh2 and RustCrypto.

    target/tools/paramiko/bin/python3 tests/vectors/ciphers.py > tests/vectors/ciphers.json

AES and ChaCha20 are those of the Python package `cryptography` (in the environment that .ci/paramiko makes); the
framing, the nonces and Poly1305 are written out below from RFC 5647, RFC 4344, RFC 8439 and OpenSSH's
PROTOCOL.chacha20poly1305. Keys and texts are SHAKE-256 of what they are for, so each run prints the same.
"""

import json
from hashlib import shake_256

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def some(what: str, size: int) -> bytes:
    return shake_256(what.encode()).digest(size)


def packet(what: str, payload: int, block: int, length_apart: bool) -> bytes:
    """Length, padding length, payload, padding (RFC 4253 section 6)."""
    unpadded = 1 + payload + (0 if length_apart else 4)
    padding = block - unpadded % block
    if padding < 4:
        padding += block
    body = bytes([padding]) + some(what, payload + padding)
    return len(body).to_bytes(4, "big") + body


def aes_ctr(key: bytes, counter: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def gcm_nonce(first: bytes, number: int) -> bytes:
    """RFC 5647 section 7.1: four fixed bytes, then a counter of packets, which begins anywhere."""
    counter = (int.from_bytes(first[4:], "big") + number) % 2**64
    return first[:4] + counter.to_bytes(8, "big")


def chacha20(key: bytes, block: int, sequence: int, data: bytes) -> bytes:
    """Block counter and nonce of 64 bits each, as D. J. Bernstein had them."""
    nonce = block.to_bytes(8, "little") + sequence.to_bytes(8, "big")
    return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(data)


def poly1305(key: bytes, data: bytes) -> bytes:
    """RFC 8439 section 2.5."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    s = int.from_bytes(key[16:], "little")
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at : at + 16] + b"\1", "little")) * r % (2**130 - 5)
    return ((total + s) % 2**128).to_bytes(16, "little")


def chacha_seal(key: bytes, sequence: int, header: bytes, text: bytes) -> bytes:
    main, length = key[:32], key[32:]
    sealed = chacha20(length, 0, sequence, header) + chacha20(main, 1, sequence, text)
    return sealed + poly1305(chacha20(main, 0, sequence, bytes(32)), sealed)


PAYLOADS = [1, 2, 11, 12, 27, 28, 43, 255, 700, 1500, 2500]


def gcm(bits: int) -> dict:
    name = f"aes{bits}-gcm@openssh.com"
    key = some(name + " key", bits // 8)
    # The counter's low bytes carry over after the third packet.
    iv = some(name + " iv", 4) + bytes.fromhex("00ff00fffffffffd")
    packets = []
    for number, size in enumerate(PAYLOADS):
        plain = packet(f"{name} {size}", size, 16, True)
        sealed = plain[:4] + AESGCM(key).encrypt(gcm_nonce(iv, number), plain[4:], plain[:4])
        packets.append({"sequence": number, "plain": plain.hex(), "sealed": sealed.hex()})
    text = some(name + " private key", 320)
    private = {"plain": text.hex(), "sealed": AESGCM(key).encrypt(iv, text, b"").hex()}
    return {"cipher": name, "key": key.hex(), "iv": iv.hex(), "packets": packets, "private_key": private}


def chacha() -> dict:
    name = "chacha20-poly1305@openssh.com"
    key = some(name + " key", 64)
    sequences = [0, 1, 2, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 3, 2**32 - 2, 2**32 - 1]
    packets = []
    for sequence, size in zip(sequences, PAYLOADS, strict=True):
        plain = packet(f"{name} {size}", size, 8, True)
        sealed = chacha_seal(key, sequence, plain[:4], plain[4:])
        packets.append({"sequence": sequence, "plain": plain.hex(), "sealed": sealed.hex()})
    text = some(name + " private key", 320)
    private = {"plain": text.hex(), "sealed": chacha_seal(key, 0, b"", text).hex()}
    return {"cipher": name, "key": key.hex(), "iv": "", "packets": packets, "private_key": private}


def ctr(bits: int) -> dict:
    name = f"aes{bits}-ctr"
    key = some(name + " key", bits // 8)
    # It carries over after the third block, into the upper half.
    iv = some(name + " iv", 7) + bytes.fromhex("7ffffffffffffffffd")
    packets, counter = [], int.from_bytes(iv, "big")
    for number, size in enumerate(PAYLOADS):
        plain = packet(f"{name} {size}", size, 16, False)
        sealed = aes_ctr(key, counter.to_bytes(16, "big"), plain)
        counter = (counter + len(plain) // 16) % 2**128
        packets.append({"sequence": number, "plain": plain.hex(), "sealed": sealed.hex()})
    text = some(name + " private key", 320)
    private = {"plain": text.hex(), "sealed": aes_ctr(key, iv, text).hex()}
    return {"cipher": name, "key": key.hex(), "iv": iv.hex(), "packets": packets, "private_key": private}


if __name__ == "__main__":
    # RFC 8439 section 2.5.2.
    assert poly1305(
        bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b"),
        b"Cryptographic Forum Research Group",
    ) == bytes.fromhex("a8061dc1305136c6c22b8baf0c0127a9")
    print(json.dumps([gcm(128), gcm(256), chacha(), ctr(128), ctr(192), ctr(256)], indent=1))
