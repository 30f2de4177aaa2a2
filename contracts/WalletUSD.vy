#pragma version 0.4.3
#pragma evm-version cancun
# A token for smart wallets: of EIP-3009 it has the one function that takes a signature as bytes, and asks its
# signer, a contract, whether it is his (ERC-1271). It is worth nothing and anybody may make it.

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    amount: uint256

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

interface Wallet:
    def isValidSignature(digest: bytes32, signature: Bytes[512]) -> bytes4: view

DOMAIN_TYPEHASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
TRANSFER_TYPEHASH: constant(bytes32) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
MAGIC: constant(bytes4) = 0x1626ba7e

name: public(constant(String[10])) = "Wallet USD"
version: public(constant(String[1])) = "1"
balanceOf: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


@external
def mint(receiver: address, amount: uint256):
    self.balanceOf[receiver] += amount


@external
def transferWithAuthorization(
    sender: address,
    receiver: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[512],
):
    assert block.timestamp > valid_after, "WalletUSD: authorization is not yet valid"
    assert block.timestamp < valid_before, "WalletUSD: authorization is expired"
    assert not self.authorizationState[sender][nonce], "WalletUSD: authorization is used or canceled"
    domain: bytes32 = keccak256(
        abi_encode(DOMAIN_TYPEHASH, keccak256(name), keccak256(version), chain.id, self)
    )
    struct_hash: bytes32 = keccak256(
        abi_encode(TRANSFER_TYPEHASH, sender, receiver, amount, valid_after, valid_before, nonce)
    )
    answer: bytes4 = staticcall Wallet(sender).isValidSignature(
        keccak256(concat(x"1901", domain, struct_hash)), signature
    )
    assert answer == MAGIC, "WalletUSD: invalid signature"
    self.authorizationState[sender][nonce] = True
    log AuthorizationUsed(authorizer=sender, nonce=nonce)
    assert self.balanceOf[sender] >= amount, "ERC20: transfer amount exceeds balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, amount=amount)
