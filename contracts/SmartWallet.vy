#pragma version 0.4.3
#pragma evm-version cancun
# A smart wallet of one owner, for the tests: a signature is his if its first 65 bytes are the owner's (ERC-1271).

MAGIC: constant(bytes4) = 0x1626ba7e

owner: public(address)


@external
def adopt(owner: address):
    assert self.owner == empty(address), "SmartWallet: it has an owner"
    self.owner = owner


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[512]) -> bytes4:
    r: bytes32 = convert(slice(signature, 0, 32), bytes32)
    s: bytes32 = convert(slice(signature, 32, 32), bytes32)
    v: uint8 = convert(slice(signature, 64, 1), uint8)
    if ecrecover(digest, v, r, s) != self.owner:
        return 0xffffffff
    return MAGIC
