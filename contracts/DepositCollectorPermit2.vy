#pragma version 0.4.3
#pragma evm-version cancun
# A double of x402's deposit collector by Permit2: takes a payer's signed deposit for a channel to the escrow.

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

interface Permit2:
    def permitWitnessTransferFrom(
        permit: PermitTransferFrom,
        details: SignatureTransferDetails,
        owner: address,
        witness: bytes32,
        witness_type: String[256],
        signature: Bytes[256],
    ): nonpayable

PERMIT2: constant(address) = 0x000000000022D473030F116dDEE9F6B43aC78BA3
ESCROW: constant(address) = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003
WITNESS_TYPE: constant(String[110]) = "DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)"
WITNESS_TYPEHASH: constant(bytes32) = keccak256("DepositWitness(bytes32 channelId)")


@external
def collect(payer: address, token: address, amount: uint256, channel_id: bytes32, data: Bytes[1024]):
    assert msg.sender == ESCROW, "OnlySettlement"
    nonce: uint256 = 0
    deadline: uint256 = 0
    signature: Bytes[256] = b""
    permit: Bytes[256] = b""  # of EIP-2612: not of use here, the allowance is there or it is not
    nonce, deadline, signature, permit = abi_decode(data, (uint256, uint256, Bytes[256], Bytes[256]))
    extcall Permit2(PERMIT2).permitWitnessTransferFrom(
        PermitTransferFrom(
            permitted=TokenPermissions(token=token, amount=amount), nonce=nonce, deadline=deadline
        ),
        SignatureTransferDetails(to=ESCROW, requestedAmount=amount),
        payer,
        keccak256(abi_encode(WITNESS_TYPEHASH, channel_id)),
        WITNESS_TYPE,
        signature,
    )
