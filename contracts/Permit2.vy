#pragma version 0.4.3
#pragma evm-version cancun
# A double of Permit2 for the tests: the signed transfer with a witness, and nothing else of it.
# Its reverts are words with the names of Permit2's errors, because facilitators map those names to reasons.
# It is put at Permit2's own address without a constructor: everything comes from constants and the chain.

from ethereum.ercs import IERC20

struct TokenPermissions:
    token: address
    amount: uint256

struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256

struct SignatureTransferDetails:
    to: address
    requestedAmount: uint256

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,uint256 chainId,address verifyingContract)"
)
TOKEN_PERMISSIONS_TYPEHASH: constant(bytes32) = keccak256("TokenPermissions(address token,uint256 amount)")
# Half of the curve's order: the larger of the two equivalent s values is refused.
S_MAX: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

nonceBitmap: public(HashMap[address, HashMap[uint256, uint256]])


@internal
@view
def _domain_separator() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPEHASH, keccak256("Permit2"), chain.id, self))


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain_separator()


@internal
@view
def _hash_permit(
    permit: PermitTransferFrom, spender: address, witness: bytes32, witness_type: String[256]
) -> bytes32:
    typehash: bytes32 = keccak256(
        concat(
            "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,",
            witness_type,
        )
    )
    permitted: bytes32 = keccak256(
        abi_encode(TOKEN_PERMISSIONS_TYPEHASH, permit.permitted.token, permit.permitted.amount)
    )
    return keccak256(abi_encode(typehash, permitted, spender, permit.nonce, permit.deadline, witness))


@internal
@view
def _check_signature(signer: address, struct_hash: bytes32, signature: Bytes[256]):
    assert len(signature) == 65, "InvalidSignatureLength"
    digest: bytes32 = keccak256(concat(x"1901", self._domain_separator(), struct_hash))
    r: bytes32 = convert(slice(signature, 0, 32), bytes32)
    s: bytes32 = convert(slice(signature, 32, 32), bytes32)
    assert convert(s, uint256) <= S_MAX, "InvalidSignature"
    v: uint8 = convert(convert(slice(signature, 64, 1), uint256), uint8)
    recovered: address = ecrecover(digest, v, r, s)
    assert recovered != empty(address) and recovered == signer, "InvalidSignature: InvalidSigner"


@internal
def _use_nonce(owner: address, nonce: uint256):
    bit: uint256 = 1 << (nonce & 255)
    used: uint256 = self.nonceBitmap[owner][nonce >> 8]
    assert used & bit == 0, "InvalidNonce"
    self.nonceBitmap[owner][nonce >> 8] = used | bit


@external
def permitWitnessTransferFrom(
    permit: PermitTransferFrom,
    details: SignatureTransferDetails,
    owner: address,
    witness: bytes32,
    witness_type: String[256],
    signature: Bytes[256],
):
    assert block.timestamp <= permit.deadline, "SignatureExpired"
    assert details.requestedAmount <= permit.permitted.amount, "InvalidAmount"
    self._use_nonce(owner, permit.nonce)
    self._check_signature(owner, self._hash_permit(permit, msg.sender, witness, witness_type), signature)
    assert extcall IERC20(permit.permitted.token).transferFrom(owner, details.to, details.requestedAmount)


@external
def invalidateUnorderedNonces(word: uint256, mask: uint256):
    self.nonceBitmap[msg.sender][word] |= mask
