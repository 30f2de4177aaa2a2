#pragma version 0.4.3
#pragma evm-version cancun
# A double of x402's deposit collector by EIP-3009: takes a payer's signed deposit for a channel to the escrow.

from ethereum.ercs import IERC20

interface Token:
    def receiveWithAuthorization(
        sender: address,
        receiver: address,
        amount: uint256,
        valid_after: uint256,
        valid_before: uint256,
        nonce: bytes32,
        v: uint8,
        r: bytes32,
        s: bytes32,
    ): nonpayable

ESCROW: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003


@external
def collect(payer: address, token: address, amount: uint256, channel_id: bytes32, data: Bytes[1024]):
    assert msg.sender == ESCROW, "OnlySettlement"
    valid_after: uint256 = 0
    valid_before: uint256 = 0
    salt: uint256 = 0
    signature: Bytes[65] = b""
    valid_after, valid_before, salt, signature = abi_decode(data, (uint256, uint256, uint256, Bytes[65]))
    assert len(signature) == 65, "InvalidSignature"
    extcall Token(token).receiveWithAuthorization(
        payer,
        self,
        amount,
        valid_after,
        valid_before,
        keccak256(abi_encode(channel_id, salt)),  # an authorization is good for one channel
        convert(convert(slice(signature, 64, 1), uint256), uint8),
        convert(slice(signature, 0, 32), bytes32),
        convert(slice(signature, 32, 32), bytes32),
    )
    assert extcall IERC20(token).transfer(ESCROW, amount)
